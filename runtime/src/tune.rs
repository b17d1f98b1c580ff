//! Choosing kernels by measuring them: every variant of an op on its real shapes, within a time and within memory, and only
//! if its results are right.
//!
//! The rules of an op choose its kernel from shape and adapter ([`Op::lower`]); they hold on an adapter as far as it is like
//! those that they were made for. [`tune`] runs each variant that an op names ([`Op::variants`]) against what the rules
//! choose, and another one wins where it is faster by more than the noise, agrees with the rules' kernel at full size, and with
//! the f64 reference on a smaller problem ([`Op::smaller`]) for which the same kernels with the same constants run.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::caps::Caps;
use crate::case::{Case, Tolerance, normal};
use crate::check::run_case_with;
use crate::choice::{Choices, RULE, key};
use crate::device::Device;
use crate::graph::Graph;
use crate::host::{Array, HostTensor};
use crate::inspect::node_seconds;
use crate::op::{Lowered, Lowering, Op, Record, TensorId};
use crate::plan::{Plan, PlanOptions};
use crate::session::{Session, SessionOptions};
use crate::store::Store;
use crate::{DType, Error, Result, TensorDesc};

/// How much tuning may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneOptions {
    /// Time for all ops together. Ops that it does not suffice for keep their rules; one that it suffices for in part is gone on
    /// with at the next call. Exceeded by what is being measured when it ends.
    pub time: Duration,
    /// Bytes of device memory for one op: its operands, and what the rules' kernel and a variant take beside each other. An op
    /// that takes more is timed on less of the same kind, where it can be.
    pub bytes: u64,
    /// The share by which a variant must be faster than the rules' kernel: more than the noise, so that choices are stable.
    pub gain: f64,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self { time: Duration::from_secs(30), bytes: 2 << 30, gain: 0.03 }
    }
}

/// What was found out about an op.
#[derive(Clone, Debug, PartialEq)]
pub struct TunedOp {
    /// The op and its operands, as [`Choices`] name them.
    pub key: String,
    /// How often it is in the graphs.
    pub times: usize,
    /// What was chosen.
    pub choice: String,
    /// Seconds of each variant that was timed, [`RULE`] among them.
    pub seconds: BTreeMap<String, f64>,
    /// Variants that were faster but wrong, and how; and those that the driver refused.
    pub rejected: BTreeMap<String, String>,
    /// Variants of which nothing is known yet: time did not suffice for them, or the device had no memory for them just then.
    pub open: Vec<String>,
}

/// The outcome of tuning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuned {
    /// What was measured now.
    pub ops: Vec<TunedOp>,
    /// Ops that the time or the memory did not suffice for.
    pub left_out: Vec<String>,
}

/// An op with a choice.
struct Candidate {
    op: Arc<dyn Op>,
    inputs: Vec<TensorDesc>,
    key: String,
    times: usize,
}

/// FLOPs of a problem that is compared with the reference: about a second of naive loops at most.
const REFERENCE_FLOPS: f64 = 5e7;
/// The most FLOPs of one, where less of the op runs other kernels.
const MOST_REFERENCE_FLOPS: f64 = 2e9;
/// A variant whose first run takes this many times what the rules' kernel takes is not timed further.
const HOPELESS: f64 = 1.5;
/// Runs of a variant in a round, and the time of a round.
const RUNS: std::ops::RangeInclusive<usize> = 3..=9;
const ROUND: Duration = Duration::from_millis(300);

/// Measures the variants of every op of `graphs` that has any and is not in `known`, those that matter most first. Of an op in
/// `begun`, what an earlier call found of it, it tries the variants that are open.
///
/// However short the time is, if there is any, a call settles at least one variant, so that calls with what the earlier ones
/// found come to an end.
///
/// # Errors
/// What goes wrong with the device. An op that cannot be run alone is left out.
pub fn tune(
    device: &Arc<Device>,
    graphs: &[&Graph],
    known: &Choices,
    begun: &[TunedOp],
    options: &TuneOptions,
    progress: &mut dyn FnMut(&TunedOp),
) -> Result<Tuned> {
    let deadline = Instant::now() + options.time;
    let mut tuned = Tuned::default();
    for candidate in candidates(device.caps(), graphs, known) {
        let before = begun.iter().find(|op| op.key == candidate.key);
        let first = tuned.ops.is_empty() && !options.time.is_zero();
        let found = match first || Instant::now() < deadline {
            true => tune_op(device, &candidate, before, options, deadline),
            false => Ok(None),
        };
        match found {
            Ok(Some(op)) => {
                progress(&op);
                tuned.ops.push(op);
            }
            Ok(None) | Err(Error::Limit { .. } | Error::OutOfMemory { .. }) => {
                tuned.left_out.push(candidate.key);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tuned)
}

/// The ops of `graphs` that have a choice on an adapter with `caps`, as [`Choices`] name them.
pub fn keys(caps: &Caps, graphs: &[&Graph]) -> Vec<String> {
    candidates(caps, graphs, &Choices::new()).into_iter().map(|candidate| candidate.key).collect()
}

/// The ops that have a choice, each once, those with the most work first.
fn candidates(caps: &Caps, graphs: &[&Graph], known: &Choices) -> Vec<Candidate> {
    let mut found: BTreeMap<String, (Candidate, f64)> = BTreeMap::new();
    for graph in graphs {
        for node in graph.nodes() {
            let inputs = graph.descs(&node.inputs);
            // What updates its inputs cannot be run again and again on the same ones.
            if !node.op.updates().is_empty() || node.op.variants(caps, &inputs).is_empty() {
                continue;
            }
            let key = key(node.op.as_ref(), &inputs);
            if known.get(&key).is_some() {
                continue;
            }
            let work = node.op.cost(&inputs, &graph.descs(&node.outputs)).flops;
            let (candidate, sum) = found.entry(key.clone()).or_insert_with(|| {
                (Candidate { op: node.op.clone(), inputs: inputs.clone(), key, times: 0 }, 0.0)
            });
            candidate.times += 1;
            *sum += work;
        }
    }
    let mut found: Vec<(Candidate, f64)> = found.into_values().collect();
    // Stable, and the map was sorted: the order is the same on every run.
    found.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    found.into_iter().map(|(candidate, _)| candidate).collect()
}

/// What an op becomes with `variant`.
fn lowered(device: &Device, op: &dyn Op, inputs: &[TensorDesc], variant: Option<&str>) -> Result<Lowered> {
    Lowering::run_choice(op, device.caps(), inputs, &op.infer(inputs)?, variant)
}

/// Whether two lowerings are the same launches.
fn same(a: &Lowered, b: &Lowered) -> bool {
    let launches = |of: &Lowered| -> Vec<String> { of.dispatches.iter().map(|d| format!("{d:?}")).collect() };
    a.workspaces == b.workspaces && launches(a) == launches(b)
}

/// The kernels of a lowering with their constants.
fn kernels(of: &Lowered) -> HashSet<String> {
    of.dispatches.iter().map(|d| format!("{} {} {:?}", d.kernel.shader, d.half, d.constants)).collect()
}

/// An op alone in a graph, with inputs of its own.
struct Alone {
    graph: Graph,
    outputs: Vec<TensorId>,
    store: Store,
    key: String,
}

impl Alone {
    fn new(device: &Arc<Device>, op: &Arc<dyn Op>, inputs: &[TensorDesc]) -> Result<Self> {
        let mut graph = Graph::new();
        let ids: Vec<TensorId> = inputs
            .iter()
            .enumerate()
            .map(|(index, desc)| graph.persistent(&format!("input {index}"), desc.clone(), "inputs"))
            .collect::<Result<_>>()?;
        let outputs = graph.push(op.clone(), &ids)?;
        outputs.iter().for_each(|&id| graph.keep(id));
        Ok(Self { graph, outputs, store: Store::new(device), key: key(op.as_ref(), inputs) })
    }

    fn options(&self, variant: &str) -> PlanOptions {
        let choices = Arc::new(Choices::from_iter([(self.key.as_str(), variant)]));
        PlanOptions { choices, ..PlanOptions::default() }
    }

    /// What `variant` takes.
    fn bytes(&self, variant: &str) -> Result<Bytes> {
        let plan = Plan::new(&self.graph, self.store.device().caps(), self.options(variant))?;
        let operands = plan.memory.persistent.values().sum();
        Ok(Bytes { operands, own: plan.memory.total() - operands })
    }

    fn session(&self, variant: &str) -> Result<Session> {
        let plan = self.options(variant);
        let options = SessionOptions { plan, in_flight: 1, ..SessionOptions::default() };
        Session::new(&self.graph, &self.store, options)
    }

    /// Fills the inputs with noise. A pattern of an odd length, repeated: drawing all of it anew would take longer than what
    /// is to be timed.
    fn fill(&self, inputs: &[TensorDesc]) -> Result<()> {
        const PATTERN: usize = 65_537;
        let noise = normal([PATTERN], 1.0, 0x7e57).tensor();
        let half = noise.to_half();
        for (index, desc) in inputs.iter().enumerate() {
            let pattern = match desc.dtype {
                DType::F32 => noise.bytes(),
                DType::F16 => half.bytes(),
                // Indices: zero is in every range, and new buffers are zero.
                DType::U32 => continue,
            };
            let mut bytes = pattern.repeat((desc.bytes() as usize).div_ceil(pattern.len().max(1)));
            bytes.truncate(desc.bytes() as usize);
            let value = HostTensor::from_bytes(desc, &bytes)?;
            self.store.write(&format!("input {index}"), &value)?;
        }
        Ok(())
    }
}

/// Bytes of device memory.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    /// Of the operands, which the sessions of one store share.
    operands: u64,
    /// Of results, workspaces and all else that a session has for itself.
    own: u64,
}

impl Bytes {
    /// What both sessions of a store take.
    fn beside(self, other: Self) -> u64 {
        self.operands + self.own + other.own
    }
}

fn run_once(session: &Session) -> Result<f64> {
    Ok(node_seconds(session, 1)?.seconds.iter().sum())
}

/// Seconds of some runs, sorted; `None` where the first one takes so much more than `known` that the rest does not matter.
fn round(session: &Session, known: f64) -> Result<Option<Vec<f64>>> {
    let began = Instant::now();
    // The first run may compile, and finds the inputs in no cache.
    run_once(session)?;
    let mut seconds = Vec::new();
    while seconds.len() < *RUNS.start() || (seconds.len() < *RUNS.end() && began.elapsed() < ROUND) {
        seconds.push(run_once(session)?);
        if seconds.first().is_some_and(|&first| first > known * HOPELESS) {
            return Ok(None);
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Some(seconds))
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY)
}

fn least(sorted: &[f64]) -> f64 {
    sorted.first().copied().unwrap_or(f64::INFINITY)
}

/// What came of timing a variant.
enum Attempt {
    /// Median seconds.
    Timed(f64),
    /// So slow that it was not timed to the end.
    Hopeless,
    /// The driver's words.
    Refused(String),
    /// The device had no memory for it, which another time it may have.
    NoMemory,
}

fn attempt(alone: &Alone, variant: &str, by_rule: f64) -> Result<Attempt> {
    let session = match alone.session(variant) {
        Ok(session) => session,
        Err(Error::OutOfMemory { .. }) => return Ok(Attempt::NoMemory),
        // A driver that refuses a kernel has taken it out of the running; a device that is lost refuses nothing.
        Err(error) => {
            let device = alone.store.device();
            device.finish().and_then(|()| device.check())?;
            return Ok(Attempt::Refused(error.to_string()));
        }
    };
    match round(&session, by_rule) {
        Ok(Some(seconds)) => Ok(Attempt::Timed(median(&seconds))),
        Ok(None) => Ok(Attempt::Hopeless),
        Err(Error::OutOfMemory { .. }) => Ok(Attempt::NoMemory),
        Err(error) => Err(error),
    }
}

/// What is known of an op before its open variants are tried, in seconds as they are beside the rule's kernel now.
fn begin(candidate: &Candidate, before: Option<&TunedOp>, by_rule: f64) -> TunedOp {
    let mut tuned = TunedOp {
        key: candidate.key.clone(),
        times: candidate.times,
        choice: RULE.to_owned(),
        seconds: BTreeMap::new(),
        rejected: BTreeMap::new(),
        open: Vec::new(),
    };
    if let Some(before) = before
        && let Some(&then) = before.seconds.get(RULE)
    {
        let now = |(name, seconds): (&String, &f64)| (name.clone(), seconds * by_rule / then);
        tuned.seconds = before.seconds.iter().map(now).collect();
        tuned.choice.clone_from(&before.choice);
        tuned.rejected.clone_from(&before.rejected);
    }
    tuned.seconds.insert(RULE.to_owned(), by_rule);
    tuned
}

/// Times and checks the variants of an op, or those that are open where it was begun; `None` where memory does not suffice.
fn tune_op(
    device: &Arc<Device>,
    candidate: &Candidate,
    before: Option<&TunedOp>,
    options: &TuneOptions,
    deadline: Instant,
) -> Result<Option<TunedOp>> {
    let Some((op, inputs)) = that_fits(device, candidate, options.bytes)? else { return Ok(None) };
    let alone = Alone::new(device, &op, &inputs)?;
    let rule = alone.session(RULE)?;
    let of_both = |variant: &str| Ok::<_, Error>(alone.bytes(variant)?.beside(alone.bytes(RULE)?));
    alone.fill(&inputs)?;
    let mut different = vec![lowered(device, op.as_ref(), &inputs, None)?];
    let Some(of_rule) = round(&rule, f64::INFINITY)? else { return Ok(None) };
    // Others are measured by it alone: one that is fast may turn out to be wrong.
    let by_rule = median(&of_rule);
    let mut tuned = begin(candidate, before, by_rule);
    let so_far = match tuned.choice.as_str() {
        RULE => f64::INFINITY,
        choice => tuned.seconds.get(choice).copied().unwrap_or(f64::INFINITY),
    };
    let mut faster: Vec<(f64, String)> = Vec::new();
    let mut settled = 0;
    let open = |name: &String| before.is_none_or(|before| before.open.contains(name));
    let mut variants = op.variants(device.caps(), &inputs).into_iter().filter(open);
    for variant in variants.by_ref() {
        // What the rules choose, and what a shape makes of two names, is timed once.
        let launches = match lowered(device, op.as_ref(), &inputs, Some(&variant)) {
            Ok(launches) if different.iter().any(|other| same(other, &launches)) => continue,
            Ok(launches) => launches,
            Err(Error::Limit { .. }) => continue,
            Err(error) => return Err(error),
        };
        different.push(launches);
        if of_both(&variant)? > options.bytes {
            continue;
        }
        if settled > 0 && Instant::now() >= deadline {
            tuned.open.push(variant);
            break;
        }
        match attempt(&alone, &variant, by_rule)? {
            Attempt::Timed(time) => {
                tuned.seconds.insert(variant.clone(), time);
                if time * (1.0 + options.gain) < least(&of_rule) && time < so_far {
                    faster.push((time, variant));
                }
            }
            Attempt::Hopeless => {}
            Attempt::Refused(why) => drop(tuned.rejected.insert(variant, why)),
            Attempt::NoMemory => {
                tuned.open.push(variant);
                continue;
            }
        }
        settled += 1;
    }
    tuned.open.extend(variants);
    faster.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut faster = faster.into_iter().enumerate();
    for (tried, (_, variant)) in faster.by_ref() {
        // The fastest is seen through in any case, or many fast ones that are wrong would be timed at every start.
        if tried > 0 && Instant::now() >= deadline {
            tuned.open.push(variant);
            break;
        }
        match confirm(device, candidate, options, (&alone, &op, &inputs), &rule, &variant) {
            Ok(Verdict::Right) => {
                tuned.choice = variant;
                // The others are right or wrong, and slower.
                return Ok(Some(tuned));
            }
            Ok(Verdict::NotFaster) => {}
            Ok(Verdict::Wrong(fault)) => drop(tuned.rejected.insert(variant, fault)),
            Err(Error::OutOfMemory { .. }) => tuned.open.push(variant),
            Err(error) => return Err(error),
        }
    }
    tuned.open.extend(faster.map(|(_, (_, variant))| variant));
    Ok(Some(tuned))
}

/// What came of looking at a fast variant again.
enum Verdict {
    Right,
    NotFaster,
    Wrong(String),
}

/// Whether a variant that was faster is so again, possible at full size, and right.
fn confirm(
    device: &Arc<Device>,
    candidate: &Candidate,
    options: &TuneOptions,
    (alone, op, inputs): (&Alone, &Arc<dyn Op>, &[TensorDesc]),
    rule: &Session,
    variant: &str,
) -> Result<Verdict> {
    let session = alone.session(variant)?;
    // Once more, one after the other: a machine that was busy for a while makes no winner.
    let again = (round(rule, f64::INFINITY)?, round(&session, f64::INFINITY)?);
    let (Some(of_rule), Some(of_variant)) = again else { return Ok(Verdict::NotFaster) };
    if median(&of_variant) * (1.0 + options.gain) >= least(&of_rule) {
        return Ok(Verdict::NotFaster);
    }
    // Where less was timed: a workspace of the whole may be over a limit.
    match Alone::new(device, &candidate.op, &candidate.inputs)?.bytes(variant) {
        Ok(_) => {}
        Err(Error::Limit { .. }) => return Ok(Verdict::NotFaster),
        Err(error) => return Err(error),
    }
    if let Some(fault) = agrees_with_rule(alone, op, inputs, rule, &session)? {
        return Ok(Verdict::Wrong(fault));
    }
    // Its memory goes to the problem that the reference does.
    drop(session);
    let taken = alone.bytes(RULE)?;
    let room = options.bytes.saturating_sub(taken.operands + taken.own);
    Ok(check(device, candidate, variant, room)?.map_or(Verdict::Right, Verdict::Wrong))
}

/// The op, or one on less of the same kind, of which two kernels beside each other take at most `bytes`.
#[expect(clippy::type_complexity, reason = "an op and its inputs, if any")]
fn that_fits(
    device: &Arc<Device>,
    candidate: &Candidate,
    bytes: u64,
) -> Result<Option<(Arc<dyn Op>, Vec<TensorDesc>)>> {
    let (mut op, mut inputs) = (candidate.op.clone(), candidate.inputs.clone());
    loop {
        match Alone::new(device, &op, &inputs)?.bytes(RULE) {
            Ok(needed) if needed.beside(needed) <= bytes => return Ok(Some((op, inputs))),
            Ok(_) | Err(Error::Limit { .. }) => {}
            Err(error) => return Err(error),
        }
        match op.smaller(&inputs) {
            Some(less) => (op, inputs) = less,
            None => return Ok(None),
        }
    }
}

/// How far rounding may take a result: sums of terms of random signs err by the order of the square root of their number.
fn tolerance(op: &dyn Op, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Tolerance {
    let elements: usize = outputs.iter().map(|desc| desc.shape.elements()).sum();
    let terms = op.cost(inputs, outputs).flops / 2.0 / elements.max(1) as f64;
    let half = outputs.iter().any(|desc| desc.dtype == DType::F16);
    Tolerance {
        relative: 1e-5_f64.max(4e-7 * terms.sqrt()),
        // A unit in the last of 11 bits.
        rounding: if half { 1e-3 } else { 0.0 },
        ..Tolerance::default()
    }
}

/// What differs between a variant's results and those of the rules' kernel, if anything.
fn agrees_with_rule(
    alone: &Alone,
    op: &Arc<dyn Op>,
    inputs: &[TensorDesc],
    rule: &Session,
    session: &Session,
) -> Result<Option<String>> {
    let one = tolerance(op.as_ref(), inputs, &op.infer(inputs)?);
    // Either may be off by as much.
    let both = Tolerance { relative: 2.0 * one.relative, rounding: 2.0 * one.rounding, ..one };
    for &id in &alone.outputs {
        let (want, got) = (floats(&rule.read(id)?), floats(&session.read(id)?));
        if let Some((index, got, want)) = first_fault(&got, &want, both) {
            return Ok(Some(format!("element {index} is {got}, that of the rule's kernel {want}")));
        }
    }
    Ok(None)
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    match tensor.as_f32() {
        Ok(values) => values.to_vec(),
        Err(_) => Array::from(tensor).data.into_iter().map(|value| value as f32).collect(),
    }
}

/// The first element that is further from what it should be than `tolerance` allows, as
/// [`compare`](crate::check::compare) understands it; for tensors of hundreds of millions of elements.
fn first_fault(got: &[f32], want: &[f32], tolerance: Tolerance) -> Option<(usize, f32, f32)> {
    let squares = want.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let rms = (squares / want.len().max(1) as f64).sqrt();
    let right = |got: f32, want: f32| {
        let (g, w) = (f64::from(got), f64::from(want));
        let allowed =
            tolerance.relative * w.abs().max(rms) + tolerance.rounding * w.abs() + tolerance.absolute;
        // A NaN is never right.
        g == w || (g - w).abs() <= allowed
    };
    let wrong = got.iter().zip(want).position(|(&got, &want)| !right(got, want));
    wrong.and_then(|index| Some((index, *got.get(index)?, *want.get(index)?)))
}

/// What differs between a variant's results and the reference, if anything: on less of the op, for which its kernels run with
/// the same constants, within `room` bytes.
fn check(device: &Arc<Device>, candidate: &Candidate, variant: &str, room: u64) -> Result<Option<String>> {
    let of = |op: &dyn Op, inputs: &[TensorDesc], variant| lowered(device, op, inputs, variant);
    let (mut op, mut inputs) = (candidate.op.clone(), candidate.inputs.clone());
    // What the rules run at full size, sums of parts and copies, needs no proof of its own.
    let trusted = kernels(&of(op.as_ref(), &inputs, None)?);
    let needed: HashSet<String> =
        kernels(&of(op.as_ref(), &inputs, Some(variant))?).difference(&trusted).cloned().collect();
    let flops =
        |op: &dyn Op, inputs: &[TensorDesc]| -> Result<f64> { Ok(op.cost(inputs, &op.infer(inputs)?).flops) };
    let fits = |op: &Arc<dyn Op>, inputs: &[TensorDesc]| -> Result<bool> {
        match Alone::new(device, op, inputs)?.bytes(variant) {
            // Its session fills results with NaN beforehand, from a buffer as large as the largest.
            Ok(bytes) => Ok(bytes.beside(bytes) <= room),
            Err(Error::Limit { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    };
    while flops(op.as_ref(), &inputs)? > REFERENCE_FLOPS || !fits(&op, &inputs)? {
        let Some((less, fewer)) = op.smaller(&inputs) else { break };
        let runs = of(less.as_ref(), &fewer, Some(variant));
        if !runs.is_ok_and(|runs| kernels(&runs).is_superset(&needed)) {
            break;
        }
        (op, inputs) = (less, fewer);
    }
    if flops(op.as_ref(), &inputs)? > MOST_REFERENCE_FLOPS || !fits(&op, &inputs)? {
        return Ok(Some("no problem small enough for the reference runs the same kernels".into()));
    }
    let drawn = inputs.iter().zip(1..).map(|(desc, seed)| match desc.dtype {
        DType::F32 => normal(desc.shape.clone(), 1.0, seed),
        DType::F16 => normal(desc.shape.clone(), 1.0, seed).half(),
        DType::U32 => crate::case::integers(desc.shape.clone(), 1, seed),
    });
    let mut case = Case::shared(variant, op.clone(), drawn.collect());
    case.tolerance = tolerance(op.as_ref(), &inputs, &op.infer(&inputs)?);
    let choices = Choices::from_iter([(key(op.as_ref(), &inputs), variant)]);
    let worst = run_case_with(device, &case, Arc::new(choices))?;
    Ok((!worst.passes()).then(|| {
        let (tensor, index, got, want) = (&worst.tensor, worst.index, worst.got, worst.want);
        format!("{tensor}[{index}] is {got}, the reference makes it {want}")
    }))
}
