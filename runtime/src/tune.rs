//! Choosing kernels by measuring them: every variant of an op on its real shapes, within a time and within memory, and only
//! if its results are right.
//!
//! The rules of an op choose its kernel from shape and adapter ([`Op::lower`]); they hold on an adapter as far as it is like
//! those that they were made for. [`tune`] runs each variant that an op names ([`Op::variants`]) against what the rules
//! choose, and another one wins where it is faster by more than the noise, agrees with the rules' kernel at full size, and with
//! the f64 reference on a smaller problem ([`Op::smaller`]) for which the same kernels with the same constants run.

mod proof;

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::caps::Caps;
use crate::case::normal;
use crate::choice::{Choices, RULE, key};
use crate::device::Device;
use crate::graph::Graph;
use crate::host::HostTensor;
use crate::inspect::node_seconds;
use crate::op::{Lowered, Lowering, Op, Record, TensorId};
use crate::plan::{Plan, PlanOptions};
use crate::session::{Session, SessionOptions};
use crate::store::Store;
use crate::{DType, Error, Result, TensorDesc};
use proof::{agrees_with_rule, check};

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

impl TunedOp {
    /// An op of which nothing is known but that `variant` is not to be run, and why.
    pub fn without(key: &str, variant: &str, why: &str) -> Self {
        Self {
            key: key.to_owned(),
            times: 0,
            choice: RULE.to_owned(),
            seconds: BTreeMap::new(),
            rejected: BTreeMap::from([(variant.to_owned(), why.to_owned())]),
            open: Vec::new(),
        }
    }

    /// Whether there is something left to be measured.
    pub fn is_begun(&self) -> bool {
        !self.open.is_empty() || self.seconds.is_empty()
    }

    /// Whether `variant` is still to be tried: of an op of which nothing was timed, all but those that are rejected.
    fn is_open(&self, variant: &str) -> bool {
        match self.seconds.is_empty() {
            true => !self.rejected.contains_key(variant),
            false => self.open.iter().any(|open| open == variant),
        }
    }
}

/// What [`tune`] tells as it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A variant is about to run. Who notes it knows which one it was that the GPU, or all of the machine, did not outlive.
    Tries {
        /// The op, as [`Choices`] name it.
        key: &'a str,
        /// One of its variants, or [`RULE`].
        variant: &'a str,
    },
    /// An op was measured.
    Measured(&'a TunedOp),
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

/// A variant whose first run takes this many times what the rules' kernel takes is not timed further.
const HOPELESS: f64 = 1.5;
/// Runs of a variant in a round, and the time of a round.
const RUNS: std::ops::RangeInclusive<usize> = 3..=9;
const ROUND: Duration = Duration::from_millis(300);

/// Measures the variants of every op of `graphs` that has any and is not in `known`, those that matter most first. Of an op in
/// `begun`, what an earlier call found of it, it tries the variants that are open. `progress` is told what is about to run, and
/// what was found; where it breaks off, what is open stays open.
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
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Tuned> {
    let deadline = Instant::now() + options.time;
    let mut tuned = Tuned::default();
    let mut stopped = false;
    for candidate in candidates(device.caps(), graphs, known) {
        let before = begun.iter().find(|op| op.key == candidate.key);
        let first = tuned.ops.is_empty() && !options.time.is_zero();
        let found = match !stopped && (first || Instant::now() < deadline) {
            true => tune_op(device, &candidate, before, options, deadline, progress),
            false => Ok(None),
        };
        match found {
            Ok(Some(op)) => {
                stopped |= progress(Progress::Measured(&op)).is_break();
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
    if let Some(before) = before {
        tuned.rejected.clone_from(&before.rejected);
        if let Some(&then) = before.seconds.get(RULE) {
            let now = |(name, seconds): (&String, &f64)| (name.clone(), seconds * by_rule / then);
            tuned.seconds = before.seconds.iter().map(now).collect();
            tuned.choice.clone_from(&before.choice);
        }
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
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Option<TunedOp>> {
    let Some((op, inputs)) = that_fits(device, candidate, options.bytes)? else { return Ok(None) };
    let alone = Alone::new(device, &op, &inputs)?;
    let rule = alone.session(RULE)?;
    let of_both = |variant: &str| Ok::<_, Error>(alone.bytes(variant)?.beside(alone.bytes(RULE)?));
    alone.fill(&inputs)?;
    let mut stopped = false;
    let mut tries = |variant: &str| {
        stopped |= progress(Progress::Tries { key: &candidate.key, variant }).is_break();
        !stopped
    };
    tries(RULE);
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
    let open = |name: &String| before.is_none_or(|before| before.is_open(name));
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
        if (settled > 0 && Instant::now() >= deadline) || !tries(&variant) {
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
        if (tried > 0 && Instant::now() >= deadline) || !tries(&variant) {
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
