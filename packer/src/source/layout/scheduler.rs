//! Schedulers of published models, as diffusers would save them.

use super::{Tensors, object};
use crate::source::diffusers::Object;
use aquatint::error::{Error, Result};
use serde_json::{Value, json};

/// The table of betas in checkpoints of latent diffusion.
const BETAS: &str = "betas";
/// How far a beta in f32 may be from the formula that made it, relative.
const ROUNDING: f64 = 1e-5;

/// First and last beta, and how those between follow.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Betas {
    pub schedule: &'static str,
    pub start: f64,
    pub end: f64,
    pub count: usize,
    /// All of them, where no formula makes them.
    pub table: Option<Vec<f32>>,
}

impl Betas {
    /// Roots of betas in equal steps, which the authors call linear and diffusers `scaled_linear`.
    pub fn scaled(start: f64, end: f64) -> Self {
        Betas { schedule: "scaled_linear", start, end, count: 1000, table: None }
    }

    /// The table that the file has, or `default` if it has none.
    ///
    /// # Errors
    /// [`Error::Request`] if the table is none of shares.
    pub fn of(tensors: &dyn Tensors, default: Betas) -> Result<Self> {
        if tensors.shape(BETAS).is_none() {
            return Ok(default);
        }
        let table = tensors.values(BETAS)?;
        let error = |got: String| {
            let expected = "a table of betas, between 0 and 1";
            Error::request(format!("{}: {BETAS}", tensors.name()), expected, got)
        };
        let (&[first, .., last], true) = (&table[..], table.iter().all(|b| *b > 0.0 && *b < 1.0)) else {
            return Err(error(format!("{} values, {:?}...", table.len(), table.first())));
        };
        // The shortest decimal that f32 rounds to this: what the authors wrote in their configuration.
        let written = |b: f32| b.to_string().parse().unwrap_or(f64::from(b));
        let (start, end) = (written(first), written(last));
        for schedule in ["scaled_linear", "linear"] {
            let betas = Betas { schedule, start, end, count: table.len(), table: None };
            let wrong = |(i, b): (usize, &f32)| (betas.at(i) / f64::from(*b) - 1.0).abs() > ROUNDING;
            if !table.iter().enumerate().any(wrong) {
                return Ok(betas);
            }
        }
        // The cosine of later authors, for example.
        Ok(Betas { schedule: "linear", start, end, count: table.len(), table: Some(table) })
    }

    fn at(&self, i: usize) -> f64 {
        let step = |from: f64, to: f64| from + (to - from) * i as f64 / (self.count - 1) as f64;
        match self.schedule {
            "linear" => step(self.start, self.end),
            _ => step(self.start.sqrt(), self.end.sqrt()).powi(2),
        }
    }

    fn scheduler(self, class: &str, fields: Value) -> Object {
        let mut all = object(json!({
            "_class_name": class,
            "beta_end": self.end,
            "beta_schedule": self.schedule,
            "beta_start": self.start,
            "clip_sample": false,
            "num_train_timesteps": self.count,
            "prediction_type": "epsilon",
            "trained_betas": self.table,
        }));
        all.extend(object(fields));
        all
    }
}

/// Song et al. 2021 on images, and Latte.
pub(super) fn ddim_linear() -> Object {
    let betas = Betas { schedule: "linear", start: 1e-4, end: 0.02, count: 1000, table: None };
    betas
        .scheduler("DDIMScheduler", json!({"set_alpha_to_one": true, "steps_offset": 0, "timestep_spacing": "leading"}))
}

/// The sampler of DiT's authors (Nichol & Dhariwal, arXiv 2102.09672): ancestral, of learned variance, over evenly spaced
/// timesteps.
pub(super) fn iddpm() -> Object {
    let betas = Betas { schedule: "linear", start: 1e-4, end: 0.02, count: 1000, table: None };
    betas.scheduler("DDPMScheduler", json!({"timestep_spacing": "linspace", "variance_type": "learned_range"}))
}

/// The ancestral sampler of Hunyuan-DiT, whose network predicts velocities.
pub(super) fn ddpm_velocity(betas: Betas) -> Object {
    betas.scheduler(
        "DDPMScheduler",
        json!({
            "prediction_type": "v_prediction",
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "variance_type": "fixed_small",
        }),
    )
}

/// The sampler of PixArt's pipelines (Lu et al., arXiv 2211.01095), over timesteps that include both ends.
pub(super) fn dpm_solver() -> Object {
    let betas = Betas { schedule: "linear", start: 1e-4, end: 0.02, count: 1000, table: None };
    let fields = json!({
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "lower_order_final": true,
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_spacing": "linspace",
    });
    betas.scheduler("DPMSolverMultistepScheduler", fields)
}

/// The sampler of latent diffusion: timesteps begin at 1, and the last step goes to the first of them.
pub(super) fn ddim_latents(betas: Betas) -> Object {
    betas.scheduler(
        "DDIMScheduler",
        json!({"set_alpha_to_one": false, "steps_offset": 1, "timestep_spacing": "leading"}),
    )
}

/// Stable Diffusion's default sampler, which its authors call PLMS.
pub(super) fn pndm(betas: Betas) -> Object {
    let fields =
        json!({"set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "leading"});
    betas.scheduler("PNDMScheduler", fields)
}

/// The sampler SDXL's authors recommend, with the steps diffusers takes.
pub(super) fn euler(betas: Betas) -> Object {
    let fields = json!({"interpolation_type": "linear", "steps_offset": 1, "timestep_spacing": "leading", "use_karras_sigmas": false});
    betas.scheduler("EulerDiscreteScheduler", fields)
}
