//! Samplers as tables: a sampler is a pure function (configuration, steps) -> one [`Row`] of coefficients per model call.
//!
//! ```text
//! Config --(schedule: alphas, timesteps; levels: sigmas)--> ddim | dpm | euler | .. --> Table { rows: [Row; calls] }
//!
//! per call:   input = input_scale * s[0]          m = model(input, timestep)
//!             x0    = clamp(a * s[0] + b * m)     s'[i] = sum_j next[i][j] * [s.., m, x0, noise][j]
//! ```
//!
//! Every sampler in use is linear in (states, model output, clamped x0, noise), with coefficients that depend on the
//! schedule alone, so one elementwise kernel serves them all and a run has no decision left to take between calls. A
//! new sampler is one more file that fills rows; it adds a [`Kind`] and a class name in `names.rs`, never a field to
//! [`Row`].
//!
//! Coefficients are worked out in f64 from the same f32 noise schedule as diffusers' and stored as f32.

mod config;
mod ddim;
mod ddpm;
mod diffusers;
mod dpm;
mod euler;
mod heun;
mod lcm;
mod levels;
mod lms;
mod names;
mod pndm;
mod schedule;
mod singlestep;
mod unipc;

use std::ops::{Add, Mul};

pub use config::Config;
pub use names::{BetaSchedule, FinalSigma, Kind, Prediction, SolverType, Spacing, Variance};

use crate::error::Result;

/// Most buffers of latents' size that a sampler may carry from call to call.
pub const MAX_STATES: usize = 7;

/// Width of a row of [`Row::next`]: the states, then the model output, x0 and the noise.
pub const COLUMNS: usize = MAX_STATES + 3;

/// Column of the model output in [`Row::next`].
pub const OUTPUT: usize = MAX_STATES;

/// Column of the (clamped) x0 in [`Row::next`].
pub const X0: usize = MAX_STATES + 1;

/// Column of the noise in [`Row::next`].
pub const NOISE: usize = MAX_STATES + 2;

/// Floats of an encoded row: input scale, the two coefficients of x0, the clamp (infinite for none), nothing up to
/// [`ROW_NEXT`], then [`Row::next`] row by row, and nothing up to a multiple of 64 bytes.
pub const ROW_FLOATS: usize = 80;

/// Where [`Row::next`] begins in an encoded row.
pub const ROW_NEXT: usize = 8;

/// The coefficients of one model call; everything is elementwise over the latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The timestep which the model receives, in training steps (0 is almost clean).
    pub timestep: f32,
    /// The model's input is `input_scale * state[0]`.
    pub input_scale: f32,
    /// The predicted clean latents are `x0[0] * state[0] + x0[1] * output`.
    pub x0: [f32; 2],
    /// x0 is then clamped to this magnitude, if any.
    pub clamp: Option<f32>,
    /// New `state[i] = sum_j next[i][j] * v[j]`, where `v` is the old states, the model output, x0 and fresh noise (see
    /// [`OUTPUT`], [`X0`], [`NOISE`]). A term with coefficient 0 is not read.
    pub next: [[f32; COLUMNS]; MAX_STATES],
}

impl Row {
    /// A row that leaves every state at 0, to be filled in.
    fn new(timestep: f32) -> Row {
        Row { timestep, input_scale: 1.0, x0: [0.0; 2], clamp: None, next: [[0.0; COLUMNS]; MAX_STATES] }
    }

    /// The row as it lies in a back end's memory.
    pub fn encode(&self) -> [f32; ROW_FLOATS] {
        let mut to = [0.0; ROW_FLOATS];
        to[..4].copy_from_slice(&[self.input_scale, self.x0[0], self.x0[1], self.clamp.unwrap_or(f32::INFINITY)]);
        for (to, next) in to[ROW_NEXT..].chunks_exact_mut(COLUMNS).zip(&self.next) {
            to.copy_from_slice(next);
        }
        to
    }

    /// Whether this call adds noise.
    pub fn noise(&self) -> bool {
        self.next.iter().any(|n| n[NOISE] != 0.0)
    }
}

/// All calls of one sampling run, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// One row per model call.
    pub rows: Vec<Row>,
    /// States in use, 1 ..= [`MAX_STATES`]. State 0 is the latents; the others start at 0.
    pub states: usize,
    /// The initial latents are standard normal noise times this.
    pub init_scale: f32,
    /// Whether any row adds noise, that is, whether the run needs a noise table.
    pub noise: bool,
}

impl Table {
    /// A table of these rows; init scale 1.
    fn new(rows: Vec<Row>, states: usize) -> Table {
        let noise = rows.iter().any(Row::noise);
        Table { rows, states, init_scale: 1.0, noise }
    }

    /// The scalar reference of one step: applies row `call` to `states` in place. Instantiated for f32 (what the back
    /// ends compute) and f64 (what tests compare with).
    ///
    /// `states` is `[self.states, n]`, `output` and `noise` are `[n]`; `noise` may be empty when the row adds none.
    /// Sums run over the columns in order, starting from the first non-zero coefficient, without fused multiply-adds.
    ///
    /// # Panics
    /// When a length or `call` does not fit; that is a bug of the caller.
    pub fn step<T>(&self, call: usize, states: &mut [T], output: &[T], noise: &[T])
    where
        T: Copy + From<f32> + Add<Output = T> + Mul<Output = T> + PartialOrd,
    {
        let row = &self.rows[call];
        let n = output.len();
        assert_eq!(states.len(), self.states * n, "states: {} buffers of {n} values expected", self.states);
        assert!(noise.len() == n || (noise.is_empty() && !row.noise()), "noise: {n} values expected");
        let zero = T::from(0.0);
        for i in 0..n {
            let mut v = [zero; COLUMNS];
            for (s, value) in v[..self.states].iter_mut().enumerate() {
                *value = states[s * n + i];
            }
            v[OUTPUT] = output[i];
            v[X0] = dot(&row.x0, &[v[0], output[i]]);
            if let Some(limit) = row.clamp {
                v[X0] = clamp(v[X0], limit.into());
            }
            v[NOISE] = noise.get(i).copied().unwrap_or(zero);
            for s in 0..self.states {
                states[s * n + i] = dot(&row.next[s], &v);
            }
        }
    }

    /// The model's input at row `call`: `input[i] = input_scale * latents[i]`, both `[n]`.
    ///
    /// # Panics
    /// When `call` is past the last row.
    pub fn input<T>(&self, call: usize, latents: &[T], input: &mut [T])
    where
        T: Copy + From<f32> + Mul<Output = T>,
    {
        let scale = T::from(self.rows[call].input_scale);
        input.iter_mut().zip(latents).for_each(|(to, &from)| *to = scale * from);
    }
}

/// `sum_j c[j] * v[j]` over the non-zero coefficients, left to right.
fn dot<T>(c: &[f32], v: &[T]) -> T
where
    T: Copy + From<f32> + Add<Output = T> + Mul<Output = T>,
{
    let terms = c.iter().zip(v).filter(|(c, _)| **c != 0.0).map(|(&c, &v)| T::from(c) * v);
    terms.reduce(|a, b| a + b).unwrap_or(T::from(0.0))
}

/// `v` limited to +-`limit`; NaN stays NaN.
fn clamp<T>(v: T, limit: T) -> T
where
    T: Copy + From<f32> + Mul<Output = T> + PartialOrd,
{
    let low = T::from(-1.0) * limit;
    match v {
        v if v > limit => limit,
        v if v < low => low,
        v => v,
    }
}

impl Config {
    /// The rows of this sampler for `steps` steps.
    ///
    /// Most samplers give exactly `steps` rows. PNDM gives one more, Heun `2 steps - 1`, and DDIM's uniform spacing as
    /// many as fit.
    ///
    /// # Errors
    /// A request error when `steps` is 0, exceeds `train_steps` or does not fit the spacing, or when a field of the
    /// configuration is out of range; the message names the remedy.
    pub fn table(&self, steps: usize) -> Result<Table> {
        self.check(steps)?;
        match self.kind {
            Kind::Ddim => ddim::table(self, steps),
            Kind::Ddpm => ddpm::table(self, steps),
            Kind::Pndm => pndm::table(self, steps),
            Kind::Euler | Kind::EulerAncestral => euler::table(self, steps),
            Kind::Heun => heun::table(self, steps),
            Kind::DpmSolverPp2M | Kind::DpmSolverPp2MSde => dpm::table(self, steps),
            Kind::DpmSolverPp2S => singlestep::table(self, steps),
            Kind::Lms => lms::table(self, steps),
            Kind::UniPc => unipc::table(self, steps),
            Kind::Lcm => lcm::table(self, steps),
        }
    }
}
