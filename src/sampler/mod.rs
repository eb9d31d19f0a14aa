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
//! new sampler is one more file that fills rows; it adds a [`SamplerKind`] and a class name in `names.rs`, never a field to
//! [`Row`].
//!
//! Coefficients are worked out in f64 from the same f32 noise schedule as diffusers' and stored as f32.

mod beta;
mod config;
mod ddim;
mod ddpm;
mod deis;
mod diffusers;
mod dpm;
mod dpm2;
mod dpm_sde;
mod euler;
mod heun;
mod lcm;
mod levels;
mod lms;
mod names;
mod pndm;
mod schedule;
mod singlestep;
mod span;
mod substitute;
mod tcd;
mod threshold;
mod unipc;

use std::cmp::Ordering;
use std::ops::{Add, Div, Mul};

pub use config::Config;
pub use names::{BetaSchedule, FinalSigma, Prediction, SamplerKind, SolverType, Spacing, Variance};
pub use span::{Span, Start};
pub use threshold::Threshold;

use crate::error::{Error, Result};

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

/// Floats of an encoded row: input scale, the two coefficients of x0, the clamp (infinite for none), [`Row::keep`],
/// [`Row::gain`] (zeros for none), then [`Row::next`] row by row, and nothing up to a multiple of 64 bytes.
pub const ROW_FLOATS: usize = 80;

/// Where [`Row::next`] begins in an encoded row.
pub const ROW_NEXT: usize = 8;

/// The coefficients of one model call; everything is elementwise over the latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The timestep which the model receives, in training steps (0 is almost clean).
    pub timestep: f32,
    /// The share of the whole run's calls that come before this one: 0 for the first, below 1. A part of a run begins
    /// later.
    pub fraction: f32,
    /// The model's input is `input_scale * state[0]`.
    pub input_scale: f32,
    /// The predicted clean latents are `x0[0] * state[0] + x0[1] * output`.
    pub x0: [f32; 2],
    /// x0 is then clamped to this magnitude, if any.
    pub clamp: Option<f32>,
    /// The noise level before the call: clean latents would be `level[0] * clean + level[1] * noise` here.
    pub level: [f32; 2],
    /// The same after the call, which is the level of the next one; the last leaves clean latents as they are. It is
    /// what inpainting puts where the picture is to stay as it was.
    pub keep: [f32; 2],
    /// With learned variance, noise is first multiplied by `exp(gain[0] + gain[1] * v)`, where v is the model's other
    /// output.
    pub gain: Option<[f32; 2]>,
    /// New `state[i] = sum_j next[i][j] * v[j]`, where `v` is the old states, the model output, x0 and fresh noise (see
    /// [`OUTPUT`], [`X0`], [`NOISE`]). A term with coefficient 0 is not read.
    pub next: [[f32; COLUMNS]; MAX_STATES],
}

impl Row {
    /// A row at a noise level that leaves every state at 0, to be filled in.
    fn new(timestep: f32, level: [f64; 2]) -> Row {
        Row {
            timestep,
            fraction: 0.0,
            input_scale: 1.0,
            x0: [0.0; 2],
            clamp: None,
            level: level.map(|c| c as f32),
            keep: [1.0, 0.0],
            gain: None,
            next: [[0.0; COLUMNS]; MAX_STATES],
        }
    }

    /// The row as it lies in a back end's memory.
    pub fn encode(&self) -> [f32; ROW_FLOATS] {
        let mut to = [0.0; ROW_FLOATS];
        let ([a, b], [keep_clean, keep_noise], [base, slope]) = (self.x0, self.keep, self.gain.unwrap_or_default());
        let most = self.clamp.unwrap_or(f32::INFINITY);
        to[..ROW_NEXT].copy_from_slice(&[self.input_scale, a, b, most, keep_clean, keep_noise, base, slope]);
        for (to, next) in to[ROW_NEXT..].chunks_exact_mut(COLUMNS).zip(&self.next) {
            to.copy_from_slice(next);
        }
        to
    }

    /// Whether all coefficients are numbers: none is divided by signal or noise that is not there.
    fn is_finite(&self) -> bool {
        let few = self.x0.iter().chain(&self.level).chain([&self.input_scale]);
        self.next.iter().flatten().chain(few).all(|c| c.is_finite())
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
    /// A run that begins with noise begins with standard normal noise times this. One that begins with an image begins
    /// at the [`Row::level`] of its first row instead.
    pub init_scale: f32,
    /// How x0 is thresholded, image by image, before it is used. Rows then have no clamp.
    pub threshold: Option<Threshold>,
    /// Whether any row adds noise, that is, whether the run needs a noise table.
    pub noise: bool,
}

impl Table {
    /// A table of these rows; init scale 1.
    fn new(rows: Vec<Row>, states: usize) -> Table {
        let noise = rows.iter().any(Row::noise);
        Table { rows, states, init_scale: 1.0, threshold: None, noise }
    }

    /// The first `calls` of these calls.
    fn take(mut self, calls: usize) -> Table {
        self.rows.truncate(calls);
        for i in 1..self.rows.len() {
            self.rows[i - 1].keep = self.rows[i].level;
        }
        self.noise = self.rows.iter().any(Row::noise);
        self
    }

    /// Whether the model must give a variance beside its prediction: twice as many channels.
    pub fn learned(&self) -> bool {
        self.rows.iter().any(|row| row.gain.is_some())
    }

    /// The scalar reference of one step: applies row `call` to `states` in place. Instantiated for f32 (what the back
    /// ends compute) and f64 (what tests compare with).
    ///
    /// `states` is `[self.states, n]`, `output` and `noise` are `[n]`; `noise` may be empty when the row adds none, and
    /// with learned variance `output` is `[2, n]`. With a threshold, all of it is one image. Sums run over the columns in order, starting from the first non-zero
    /// coefficient, without fused multiply-adds.
    ///
    /// # Panics
    /// When a length or `call` does not fit; that is a bug of the caller.
    pub fn step<T: Real>(&self, call: usize, states: &mut [T], output: &[T], noise: &[T]) {
        let row = &self.rows[call];
        let n = output.len() / if row.gain.is_some() { 2 } else { 1 };
        assert_eq!(states.len(), self.states * n, "states: {} buffers of {n} values expected", self.states);
        assert!(noise.len() == n || (noise.is_empty() && !row.noise()), "noise: {n} values expected");
        let zero = T::from(0.0);
        let predicted = |states: &[T], i: usize| dot(&row.x0, &[states[i], output[i]]);
        let threshold = self
            .threshold
            .map(|threshold| threshold.of(&mut (0..n).map(|i| magnitude(predicted(states, i))).collect::<Vec<T>>()));
        for i in 0..n {
            let mut v = [zero; COLUMNS];
            for (s, value) in v[..self.states].iter_mut().enumerate() {
                *value = states[s * n + i];
            }
            v[OUTPUT] = output[i];
            v[X0] = predicted(states, i);
            if let Some(limit) = threshold {
                v[X0] = clamp(v[X0], limit) / limit;
            }
            if let Some(limit) = row.clamp {
                v[X0] = clamp(v[X0], T::from(limit));
            }
            v[NOISE] = noise.get(i).copied().unwrap_or(zero);
            if let Some([base, slope]) = row.gain {
                v[NOISE] = (T::from(base) + T::from(slope) * output[n + i]).exp() * v[NOISE];
            }
            for s in 0..self.states {
                states[s * n + i] = dot(&row.next[s], &v);
            }
        }
    }

    /// The model's input at row `call`: `input[i] = input_scale * latents[i]`, both `[n]`.
    ///
    /// # Panics
    /// When `call` is past the last row.
    pub fn input<T: Real>(&self, call: usize, latents: &[T], input: &mut [T]) {
        let scale = T::from(self.rows[call].input_scale);
        input.iter_mut().zip(latents).for_each(|(to, &from)| *to = scale * from);
    }

    /// The scalar reference of inpainting after row `call`, in place on the latents: where `mask` is 1 they stay, where
    /// it is 0 they become those of the clean image `init` with `noise` of the level that the run is at. All are `[n]`.
    ///
    /// # Panics
    /// When `call` is past the last row.
    pub fn blend<T: Real>(&self, call: usize, latents: &mut [T], mask: &[T], init: &[T], noise: &[T]) {
        let [clean, noisy] = self.rows[call].keep.map(T::from);
        for (i, to) in latents.iter_mut().enumerate() {
            let outside = T::from(1.0) + T::from(-1.0) * mask[i];
            *to = outside * (clean * init[i] + noisy * noise[i]) + mask[i] * *to;
        }
    }
}

/// What the scalar reference computes in: f32 or f64.
pub trait Real: Copy + From<f32> + Add<Output = Self> + Mul<Output = Self> + Div<Output = Self> + PartialOrd {
    /// `e^self`.
    fn exp(self) -> Self;

    /// The order of all numbers, NaN included.
    fn total_cmp(&self, other: &Self) -> Ordering;
}

impl Real for f32 {
    fn exp(self) -> f32 {
        self.exp()
    }

    fn total_cmp(&self, other: &f32) -> Ordering {
        f32::total_cmp(self, other)
    }
}

impl Real for f64 {
    fn exp(self) -> f64 {
        self.exp()
    }

    fn total_cmp(&self, other: &f64) -> Ordering {
        f64::total_cmp(self, other)
    }
}

/// `sum_j c[j] * v[j]` over the non-zero coefficients, left to right.
fn dot<T: Real>(c: &[f32], v: &[T]) -> T {
    let terms = c.iter().zip(v).filter(|(c, _)| **c != 0.0).map(|(&c, &v)| T::from(c) * v);
    terms.reduce(|a, b| a + b).unwrap_or(T::from(0.0))
}

fn magnitude<T: Real>(v: T) -> T {
    if v < T::from(0.0) { T::from(-1.0) * v } else { v }
}

/// `v` limited to +-`limit`; NaN stays NaN.
fn clamp<T: Real>(v: T, limit: T) -> T {
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
    /// Most samplers give exactly `steps` rows. PNDM gives one more, those that call twice `2 steps - 1`, and DDIM's uniform spacing as
    /// many as fit.
    ///
    /// # Errors
    /// A request error when `steps` is 0, exceeds `train_steps` or does not fit the spacing, or when a field of the
    /// configuration is out of range; the message names the remedy. So does that of a schedule whose first timestep has no
    /// signal, with a prediction from which x0 does not follow there.
    pub fn table(&self, steps: usize) -> Result<Table> {
        self.table_range(steps, &Span::default())
    }

    /// The rows of a part of a run of `steps` steps.
    ///
    /// They are those of the whole run, but for samplers that look back: at the first row there is nothing to look back
    /// at, so they begin with their first order again, as diffusers' schedulers do. Calls are counted from the first row
    /// of the part, and so is the noise of each call. Two peculiarities of diffusers are kept, for equal pictures: linear
    /// multistep leaves out the derivatives it lacks but keeps the weights of the others, and PLMS begins with two calls
    /// as if the second were the first again, whose step is then one short.
    ///
    /// # Errors
    /// Those of [`table`](Config::table), and when the part is none or its bounds are out of range.
    pub fn table_range(&self, steps: usize, span: &Span) -> Result<Table> {
        self.check(steps)?;
        let whole = self.rows(steps, 0)?;
        if let Some(row) = whole.rows.iter().find(|row| !row.is_finite()) {
            let what = format!("schedule at timestep {}", row.timestep);
            let expected = format!("signal and noise, as {} and {} divide by both", self.kind, self.prediction);
            return Err(Error::request(what, expected, "one without the other; v_prediction with ddim or euler can"));
        }
        let timesteps: Vec<f32> = whole.rows.iter().map(|row| row.timestep).collect();
        let calls = span.calls(self, steps, &timesteps)?;
        let mut table = if calls.start == 0 { whole } else { self.rows(steps, calls.start)? };
        for (i, row) in table.rows.iter_mut().enumerate() {
            // PLMS has a call more in a part than in the whole, which must not count beyond the end.
            row.fraction = (calls.start + i).min(timesteps.len() - 1) as f32 / timesteps.len() as f32;
        }
        table.threshold = self.threshold();
        Ok(table.take(calls.len()))
    }

    /// The rows from call `begin` on, of a sampler that has seen none before.
    fn rows(&self, steps: usize, begin: usize) -> Result<Table> {
        let mut table = match self.kind {
            SamplerKind::Pndm => return pndm::table(self, steps, begin),
            SamplerKind::Lms => return lms::table(self, steps, begin),
            SamplerKind::UniPc => return unipc::table(self, steps, begin),
            SamplerKind::Deis => return deis::table(self, steps, begin),
            SamplerKind::DpmSolverPp2S => return singlestep::table(self, steps, begin),
            SamplerKind::DpmSolverPp2M
            | SamplerKind::DpmSolverPp2MSde
            | SamplerKind::DpmSolverPp3M
            | SamplerKind::DpmSolverPp3MSde => return dpm::table(self, steps, begin),
            // What follows does not look back.
            SamplerKind::Ddim => ddim::table(self, steps),
            SamplerKind::Ddpm => ddpm::table(self, steps),
            SamplerKind::Euler | SamplerKind::EulerAncestral => euler::table(self, steps),
            SamplerKind::Heun => heun::table(self, steps),
            SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral => dpm2::table(self, steps),
            SamplerKind::DpmSolverPpSde => dpm_sde::table(self, steps),
            SamplerKind::Lcm => lcm::table(self, steps),
            SamplerKind::Tcd => tcd::table(self, steps),
        }?;
        table.rows.drain(..begin);
        Ok(table)
    }
}
