//! Convolutions on cooperative matrices, the units that GPUs multiply small matrices with: which blocks a workgroup makes, and
//! with which constants.
//!
//! A workgroup makes a few jobs of 64 rows x 32 columns, one a subgroup. Matrices are 16 x 16 of f16 where the adapter has those,
//! else 8 x 8, of f16 or f32; sums are f32.

use crate::caps::Caps;
use crate::kernel::{Kernel, Needs};
use crate::{DType, Error, Result};

/// Rows and columns of a job.
const JOB: [usize; 2] = [64, 32];

/// Elements between rows of a tile in workgroup memory.
const GAP: usize = 8;

/// The jobs of a workgroup, along rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jobs([u32; 2]);

impl Jobs {
    /// All numbers of jobs, the largest first.
    pub const ALL: [Self; 4] = [Self([2, 4]), Self([2, 2]), Self([1, 2]), Self([1, 1])];

    /// Workgroups below which fewer jobs are taken: about twice the number of cores of a large GPU.
    const ENOUGH: usize = 256;

    fn count(self) -> u32 {
        self.0[0] * self.0[1]
    }

    fn rows(self) -> usize {
        JOB[0] * self.0[0] as usize
    }

    fn columns(self) -> usize {
        JOB[1] * self.0[1] as usize
    }

    /// Elements of a row or column that one step takes in: 64 bytes.
    fn step(element: DType) -> usize {
        64 / element.bytes()
    }

    /// Invocations of a workgroup: a subgroup a job, however wide the subgroups of the launch turn out to be.
    fn invocations(self, caps: &Caps) -> u32 {
        self.count() * caps.subgroups.map_or(0, |sizes| sizes.max)
    }

    /// Whether a workgroup fits an adapter that has matrices of `side`.
    fn fits(self, side: u32, element: DType, caps: &Caps) -> bool {
        let (step, side) = (Self::step(element), side as usize);
        // The larger of the two kernels' tiles; then what they stage, and what they know of rows, columns and pixels.
        let by_row = self.rows() * (step + GAP) + step * (self.columns() + GAP);
        let by_step = step * (self.rows() + self.columns() + 2 * GAP);
        let staged = 4 * (self.count() as usize + 1) * side * side;
        let known = 12 * self.rows() + 8 * self.count() as usize * JOB[1] + 64;
        let bytes = by_row.max(by_step) * element.bytes() + staged + known;
        self.invocations(caps) <= caps.max_invocations && bytes <= caps.max_workgroup_bytes as usize
    }
}

impl std::fmt::Display for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows(), self.columns())
    }
}

/// A launch on cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matrices {
    side: u32,
    element: DType,
    /// `None` lets the shape choose.
    jobs: Option<Jobs>,
}

/// What a workgroup makes, and how many there are.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Workgroups along the rows.
    pub rows: usize,
    /// Workgroups along the columns of a group.
    pub columns: usize,
    /// Values of the kernels' constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Rows of a job, and jobs of a workgroup along the rows.
    pub job_rows: [usize; 2],
}

impl Matrices {
    /// Cooperative matrices for operands of `element`, where the adapter has them, in these jobs; `None` where it cannot be.
    pub fn new(caps: &Caps, element: DType, jobs: Option<Jobs>) -> Option<Self> {
        let side = caps.matrix_side(element)?;
        // An invocation always loads the same vector of a step, and there are eight of them.
        let subgroups = caps.subgroups.filter(|sizes| sizes.max >= 8 && sizes.max.is_power_of_two())?;
        let fits = |jobs: Jobs| jobs.fits(side, element, caps) && subgroups.max > 0;
        let possible = jobs.map_or_else(|| Jobs::ALL.into_iter().any(fits), fits);
        possible.then_some(Self { side, element, jobs })
    }

    /// Whether they suit groups of so many channels in and out: where most of a job would be empty, other kernels are better.
    pub fn suit(group_in: usize, group_out: usize) -> bool {
        group_in >= 16 && group_out >= JOB[1]
    }

    /// The kernel for 8 x 8 or for 16 x 16.
    pub fn kernel(&self, [small, large]: [&'static Kernel; 2]) -> &'static Kernel {
        if small.needs == Needs::Matrices(self.side) { small } else { large }
    }

    /// Blocks of a product of `rows` x `columns` for each of `groups`.
    pub fn blocks(&self, caps: &Caps, rows: usize, columns: usize, groups: usize) -> Result<Blocks> {
        let (row_blocks, column_blocks) =
            (|jobs: Jobs| rows.div_ceil(jobs.rows()), |jobs: Jobs| columns.div_ceil(jobs.columns()));
        let fits = |jobs: &Jobs| jobs.fits(self.side, self.element, caps);
        let fills = |jobs: &Jobs| {
            let narrow = jobs.0[1] == 1 || columns > jobs.columns() / 2;
            narrow && row_blocks(*jobs) * column_blocks(*jobs) * groups >= Jobs::ENOUGH
        };
        let by_shape = || {
            let possible = || Jobs::ALL.into_iter().filter(fits);
            possible().find(fills).or_else(|| possible().next_back())
        };
        let jobs = self.jobs.or_else(by_shape).ok_or_else(|| {
            Error::graph(
                "a workgroup on cooperative matrices does not fit the adapter",
                "use another variant",
            )
        })?;
        let constants = vec![
            ("JOBS_Y", f64::from(jobs.0[0])),
            ("JOBS_X", f64::from(jobs.0[1])),
            ("STEP", Jobs::step(self.element) as f64),
            ("WORKGROUP", f64::from(jobs.invocations(caps))),
        ];
        Ok(Blocks {
            rows: row_blocks(jobs),
            columns: column_blocks(jobs),
            constants,
            job_rows: [JOB[0], jobs.0[0] as usize],
        })
    }
}
