//! Passes over all pairs: panels of embeddings go to the device, two at a time, and what is asked of their scores comes
//! back.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use epl_runtime::{Caps, Device, Graph, HostTensor, Session, SessionOptions, Store, TensorDesc, TensorId};
use rayon::prelude::*;

use super::adapter_fault;
use super::band::{Histogram, Target, key};
use super::unit::{Members, score};
use crate::eval::ops::score_histogram::{ScoreHistogram, score_histogram};
use crate::eval::ops::score_select::{ScoreSelect, score_select};
use crate::eval::ops::{Bins, MAX_PANEL, WINDOW};
use crate::{Error, Result};

/// Bins about as wide as the error bound of an f32 product of rows of 512, 6.2e-5.
const BINS: Bins = Bins { per_unit: 1 << 14, margin: 64 };

/// Sizes that a pass may take; the defaults suit any adapter.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Embeddings of a panel; chosen by the set and the adapter where `None`.
    pub panel: Option<usize>,
    /// Pairs that one step may list; where there are more its panels are taken in parts. By what the first pass counted
    /// where `None`.
    pub listed: Option<usize>,
    /// Scores that may be kept on the host to find all thresholds, of 8 bytes each.
    pub keep: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { panel: None, listed: None, keep: 50_000_000 }
    }
}

/// Pairs that one step lists at most: 128 MiB, of which the host holds a few copies.
const MAX_LISTED: usize = 1 << 24;

/// How far a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The pass, counted from 1.
    pub pass: usize,
    /// Pairs done in it.
    pub done: u64,
    /// Pairs of every pass.
    pub pairs: u64,
}

/// Some of the pairs of two panels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub panels: [usize; 2],
    /// Within the panels.
    pub rows: Range<u32>,
    pub columns: Range<u32>,
}

impl Window {
    fn diagonal(&self) -> bool {
        self.panels[0] == self.panels[1]
    }

    fn words(&self) -> [u32; WINDOW] {
        let Self { rows, columns, .. } = self;
        [rows.start, rows.end, columns.start, columns.end, u32::from(self.diagonal())]
    }

    /// How many pairs count.
    pub fn pairs(&self) -> u64 {
        let columns = |row: u32| {
            let first = if self.diagonal() { self.columns.start.max(row + 1) } else { self.columns.start };
            u64::from(self.columns.end.saturating_sub(first))
        };
        if self.diagonal() {
            self.rows.clone().map(columns).sum()
        } else {
            self.rows.len() as u64 * columns(0)
        }
    }

    /// The same pairs in two parts; `None` for a single pair.
    fn halves(&self) -> Option<[Self; 2]> {
        let cut = |range: &Range<u32>| {
            let middle = range.start + (range.end - range.start) / 2;
            [range.start..middle, middle..range.end]
        };
        let (rows, columns) = (self.rows.len(), self.columns.len());
        match (rows >= columns, rows.max(columns)) {
            (_, 0 | 1) => None,
            (true, _) => Some(cut(&self.rows).map(|rows| Self { rows, ..self.clone() })),
            (false, _) => Some(cut(&self.columns).map(|columns| Self { columns, ..self.clone() })),
        }
    }
}

/// Embeddings of a panel: large ones are moved once for more products, but those on the diagonal are computed in vain by
/// half, and a set should have several.
pub(super) fn panel_rows(caps: &Caps, count: usize, dimension: usize) -> usize {
    let most = if caps.cpu { 2048 } else { 16_384 };
    let fits = (caps.max_binding_bytes / (4 * dimension.max(1) as u64)) as usize;
    let most = most.min(fits).min(MAX_PANEL) / 64 * 64;
    // At least 64 rows fit every adapter: 64 of 16384 are 4 MiB.
    count.div_ceil(8).next_multiple_of(64).max(256).min(most.max(64))
}

/// The windows that hold every pair i < j of `count` members once.
pub(super) fn windows(count: usize, panel: usize) -> VecDeque<Window> {
    let panels = count.div_ceil(panel);
    let rows = |at: usize| 0..panel.min(count - at * panel) as u32;
    let all = |i: usize| (i..panels).map(move |j| Window { panels: [i, j], rows: rows(i), columns: rows(j) });
    (0..panels).flat_map(all).collect()
}

/// A panel on the host.
struct Side {
    panel: Option<usize>,
    values: Vec<f32>,
    labels: Vec<u32>,
}

impl Side {
    fn new(panel: usize, dimension: usize) -> Self {
        Self { panel: None, values: vec![0.0; panel * dimension], labels: vec![0; panel] }
    }

    /// Takes panel `at` of `members`. A partial one keeps rows of the panel before behind its own; no window has them.
    fn load(&mut self, members: &Members<'_>, at: usize) {
        if self.panel == Some(at) {
            return;
        }
        let (dimension, first) = (members.unit().dimension(), at * self.labels.len());
        self.values.par_chunks_exact_mut(dimension).enumerate().for_each(|(row, slot)| {
            let found = members.row(first + row);
            slot.iter_mut().zip(found).for_each(|(slot, value)| *slot = *value);
        });
        let labels = members.labels().get(first..).unwrap_or_default();
        self.labels.iter_mut().zip(labels).for_each(|(slot, label)| *slot = *label);
        self.panel = Some(at);
    }
}

/// Takes the results of a window; returns windows that have to be done again.
type Each<'a> = dyn FnMut(&Window, &[HostTensor]) -> Result<Vec<Window>> + 'a;

/// A recorded pass.
struct Pass {
    session: Session,
    panels: [TensorId; 2],
    labels: Option<[TensorId; 2]>,
    chosen: Option<TensorId>,
    window: TensorId,
}

/// What looks at all pairs.
pub(super) struct Sweep<'a> {
    members: &'a Members<'a>,
    store: Store,
    panel: usize,
    listed: Option<usize>,
    passes: usize,
}

impl<'a> Sweep<'a> {
    pub fn new(device: &Arc<Device>, members: &'a Members<'a>, limits: &Limits) -> Result<Self> {
        let dimension = members.unit().dimension();
        let panel = match limits.panel {
            Some(panel) => panel.clamp(1, MAX_PANEL),
            None => panel_rows(device.caps(), members.len(), dimension),
        };
        Ok(Self { members, store: Store::new(device), panel, listed: limits.listed, passes: 0 })
    }

    /// The bins that scores are counted in.
    pub fn bins(&self) -> Bins {
        BINS
    }

    fn inputs(&self, graph: &mut Graph) -> Result<([TensorId; 2], TensorId)> {
        let panel = TensorDesc::f32([self.panel, self.members.unit().dimension()]);
        let panels = [graph.input("rows", panel.clone())?, graph.input("columns", panel)?];
        Ok((panels, graph.input("window", TensorDesc::u32([WINDOW]))?))
    }

    fn histogram_pass(&self) -> Result<Pass> {
        let mut graph = Graph::new();
        let (panels, window) = self.inputs(&mut graph)?;
        let labels = TensorDesc::u32([self.panel]);
        let labels = [graph.input("row labels", labels.clone())?, graph.input("column labels", labels)?];
        let op = ScoreHistogram { bins: BINS, tile: None };
        let counts = score_histogram(&mut graph, panels, labels, window, op)?;
        graph.fetch(counts);
        let session = Session::new(&graph, &self.store, SessionOptions::default())?;
        Ok(Pass { session, panels, labels: Some(labels), chosen: None, window })
    }

    /// Pairs that a step of a pass lists that meets `expected` pairs in all: some times the average, since a set is not
    /// the same everywhere, but no more than a binding holds.
    fn capacity(&self, expected: u64) -> usize {
        let steps = windows(self.members.len(), self.panel).len().max(1) as u64;
        let wanted = usize::try_from(8 * expected / steps).unwrap_or(usize::MAX).max(1 << 12);
        let fits = usize::try_from(self.store.device().caps().max_binding_bytes / 8).unwrap_or(usize::MAX);
        self.listed.unwrap_or(wanted.min(MAX_LISTED)).min(fits).clamp(1, self.panel * self.panel)
    }

    fn select_pass(&self, listed: usize) -> Result<Pass> {
        let mut graph = Graph::new();
        let (panels, window) = self.inputs(&mut graph)?;
        let chosen = graph.input("chosen", TensorDesc::u32([BINS.words()]))?;
        let op = ScoreSelect { bins: BINS, capacity: listed, tile: None };
        let listed = score_select(&mut graph, panels, chosen, window, op)?;
        listed.into_iter().for_each(|tensor| graph.fetch(tensor));
        let session = Session::new(&graph, &self.store, SessionOptions::default())?;
        Ok(Pass { session, panels, labels: None, chosen: Some(chosen), window })
    }

    /// Runs `pass` over all windows, and hands each with its results to `each`, which may return windows that have to be
    /// done again.
    fn run(
        &mut self,
        pass: &mut Pass,
        chosen: &[u32],
        progress: &mut dyn FnMut(Progress),
        each: &mut Each<'_>,
    ) -> Result<()> {
        self.passes += 1;
        let dimension = self.members.unit().dimension();
        let mut sides = [Side::new(self.panel, dimension), Side::new(self.panel, dimension)];
        let mut waiting = windows(self.members.len(), self.panel);
        let mut state = Progress { pass: self.passes, done: 0, pairs: self.members.pairs().iter().sum() };
        let mut flying: VecDeque<Window> = VecDeque::new();
        while let Some(window) = waiting.pop_front() {
            for (index, side) in sides.iter_mut().enumerate() {
                side.load(self.members, window.panels.get(index).copied().unwrap_or(0));
            }
            for (id, side) in pass.panels.iter().zip(&sides) {
                pass.session.write(*id, bytemuck::cast_slice(&side.values))?;
            }
            for (id, side) in pass.labels.iter().flatten().zip(&sides) {
                pass.session.write(*id, bytemuck::cast_slice(&side.labels))?;
            }
            if let Some(id) = pass.chosen {
                pass.session.write(id, bytemuck::cast_slice(chosen))?;
            }
            pass.session.write(pass.window, bytemuck::cast_slice(&window.words()))?;
            pass.session.step()?;
            flying.push_back(window);
            let mut results = pass.session.finished()?;
            if waiting.is_empty() {
                results.extend(pass.session.flush()?);
            }
            for done in results {
                let Some(window) = flying.pop_front() else { break };
                let again = each(&window, &done.values)?;
                state.done += window.pairs() - again.iter().map(Window::pairs).sum::<u64>();
                again.into_iter().rev().for_each(|window| waiting.push_front(window));
                progress(state);
            }
        }
        Ok(())
    }

    /// Pairs of one identity and of two by the bin of their score.
    pub fn histogram(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<[Vec<u64>; 2]> {
        let mut pass = self.histogram_pass()?;
        let mut counts = [vec![0u64; BINS.count()], vec![0u64; BINS.count()]];
        self.run(&mut pass, &[], progress, &mut |_, values| {
            // A step has fewer than 2^32 pairs; sums of steps are of 64 bits.
            let found = values.first().map(HostTensor::as_u32).transpose()?.unwrap_or_default();
            for (sums, found) in counts.iter_mut().zip(found.chunks_exact(BINS.count())) {
                sums.iter_mut().zip(found).for_each(|(sum, count)| *sum += u64::from(*count));
            }
            Ok(Vec::new())
        })?;
        Ok(counts)
    }

    /// One pass that gives every target the pairs of its bins, of which there are `histogram`'s.
    pub fn select(
        &mut self,
        targets: &mut [Target],
        histogram: &Histogram,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        // Bins that several targets share are counted for each: that is only more room.
        let listed = self.capacity(targets.iter().map(|target| target.expected(histogram)).sum());
        let mut pass = self.select_pass(listed)?;
        let mut chosen = vec![0u32; BINS.words()];
        for bin in targets.iter().flat_map(Target::bins) {
            if let Some(word) = chosen.get_mut(bin / 32) {
                *word |= 1 << (bin % 32);
            }
        }
        let (members, panel) = (self.members, self.panel);
        let device = self.store.device().clone();
        self.run(&mut pass, &chosen, progress, &mut |window, values| {
            let [count, list] = values else { return Err(Error::from(fault())) };
            let count = count.as_u32()?.first().copied().unwrap_or(0) as usize;
            if count > listed {
                return match window.halves() {
                    Some(halves) => Ok(halves.into()),
                    None => Err(Error::from(fault())),
                };
            }
            let (pairs, _) = list.as_u32()?.as_chunks::<2>();
            let scored: Vec<Scored> = pairs
                .get(..count)
                .unwrap_or_default()
                .par_iter()
                .map(|&pair| Scored::new(members, panel, window, pair))
                .collect();
            let bound = members.unit().bound();
            if let Some(wrong) = scored.iter().find(|pair| !pair.is_possible(bound)) {
                let found = format!("a cosine of about {}", BINS.edge(wrong.bin));
                return Err(adapter_fault(&device, found, format!("{}", wrong.score)));
            }
            for target in targets.iter_mut() {
                let bins = target.bins();
                for pair in scored.iter().filter(|pair| bins.contains(&pair.bin)) {
                    target.add(pair.kind, key(pair.score));
                }
            }
            Ok(Vec::new())
        })
    }
}

fn fault() -> epl_runtime::Error {
    epl_runtime::Error::graph("a list of pairs is not what was recorded", "this is a fault of the program")
}

/// A pair of which the GPU could not say on which side it is.
struct Scored {
    bin: usize,
    /// 0 for one of one identity, 1 for one of two.
    kind: usize,
    score: f64,
}

impl Scored {
    fn new(members: &Members<'_>, panel: usize, window: &Window, [place, bin]: [u32; 2]) -> Self {
        let [rows, columns] = window.panels;
        let i = rows * panel + (place & 0xffff) as usize;
        let j = columns * panel + (place >> 16) as usize;
        let labels = members.labels();
        Self {
            bin: bin as usize,
            kind: usize::from(labels.get(i) != labels.get(j)),
            score: score(members.row(i), members.row(j)),
        }
    }

    /// Whether a score that is off by at most `bound` can be in this bin.
    fn is_possible(&self, bound: f64) -> bool {
        (BINS.edge(self.bin) - bound..=BINS.edge(self.bin + 1) + bound).contains(&self.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_pair_once_and_so_do_their_halves() {
        for (count, panel) in [(1, 64), (64, 64), (65, 64), (300, 64), (130, 256)] {
            let mut seen = vec![0; count * count];
            let mut all = windows(count, panel);
            let pairs: u64 = all.iter().map(Window::pairs).sum();
            assert_eq!(pairs, (count * (count - 1) / 2) as u64);
            while let Some(window) = all.pop_front() {
                if window.pairs() > 50
                    && let Some(halves) = window.halves()
                {
                    assert_eq!(halves.iter().map(Window::pairs).sum::<u64>(), window.pairs());
                    all.extend(halves);
                    continue;
                }
                for row in window.rows.clone() {
                    for column in window.columns.clone() {
                        let i = window.panels[0] * panel + row as usize;
                        let j = window.panels[1] * panel + column as usize;
                        if !window.diagonal() || column > row {
                            assert!(i < j);
                            seen[i * count + j] += 1;
                        }
                    }
                }
            }
            assert!((0..count).all(|i| (i + 1..count).all(|j| seen[i * count + j] == 1)), "{count}");
        }
    }

    #[test]
    fn panels_fit_every_adapter() {
        for dimension in [1, 64, 512, 16_384] {
            for count in [2, 400, 5000, 1_000_000, 100_000_000] {
                let rows = panel_rows(&Caps::WEBGPU, count, dimension);
                assert!(rows.is_multiple_of(64) && rows > 0 && rows <= MAX_PANEL);
                assert!((rows * dimension * 4) as u64 <= Caps::WEBGPU.max_binding_bytes);
            }
        }
        assert_eq!(panel_rows(&Caps::WEBGPU, 1_000_000, 512), 16_384);
        assert_eq!(panel_rows(&Caps::WEBGPU, 5000, 64), 640);
    }
}
