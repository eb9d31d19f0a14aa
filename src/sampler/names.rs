//! The words that a sampler's settings are made of, as diffusers and the command line spell them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An enum whose values have one spelling, used on the command line, in JSON and in messages.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$item:meta])* $name:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $type { $($(#[$item])* #[serde(rename = $text)] $name,)+ }

        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &[$type] = &[$($type::$name),+];

            /// The spelling on the command line and in JSON.
            pub fn name(self) -> &'static str {
                match self { $($type::$name => $text,)+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = Error;

            /// The value with this name; a request error that lists the names otherwise.
            fn from_str(text: &str) -> Result<Self> {
                let found = Self::ALL.iter().copied().find(|v| v.name() == text);
                let names: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                found.ok_or_else(|| Error::request($what, format!("one of {}", names.join(", ")), text))
            }
        }
    };
}

words! {
    /// A sampler, by its command line name.
    SamplerKind, "sampler" {
        /// DDIM, deterministic or with noise ([`Config::eta`](super::Config::eta)).
        Ddim = "ddim",
        /// Ancestral sampling as DDPM was trained ([`Config::variance`](super::Config::variance)).
        Ddpm = "ddpm",
        /// Pseudo linear multistep, "PLMS": one more call than steps.
        Pndm = "pndm",
        /// Euler's method.
        Euler = "euler",
        /// Euler's method with fresh noise at each step.
        EulerAncestral = "euler-a",
        /// Heun's method: two calls a step, but for the last.
        Heun = "heun",
        /// DPM-Solver++ multistep, of order 1 or 2 ([`Config::solver_order`](super::Config::solver_order)).
        DpmSolverPp2M = "dpm++2m",
        /// The same for the stochastic equation, with fresh noise at each step.
        DpmSolverPp2MSde = "dpm++2m-sde",
        /// DPM-Solver++ multistep of order 3.
        DpmSolverPp3M = "dpm++3m",
        /// The same for the stochastic equation.
        DpmSolverPp3MSde = "dpm++3m-sde",
        /// DPM-Solver++ singlestep, of order 1 or 2; a call counts as a step.
        DpmSolverPp2S = "dpm++2s",
        /// Linear multistep of order 4.
        Lms = "lms",
        /// UniPC: a predictor and a corrector of order 1 to 3.
        UniPc = "unipc",
        /// Latent consistency models.
        Lcm = "lcm",
        /// Trajectory consistency models ([`Config::eta`](super::Config::eta) is their gamma).
        Tcd = "tcd",
        /// DEIS in log-rho, multistep, of order 1 to 3.
        Deis = "deis",
        /// DPM-Solver-2: two calls a step, but for the last.
        Dpm2 = "dpm2",
        /// The same with fresh noise at each step.
        Dpm2Ancestral = "dpm2-a",
        /// DPM-Solver++ of the stochastic equation with a call between: two calls a step, but for the last.
        DpmSolverPpSde = "dpm++sde",
    }
}

words! {
    /// How beta runs from `beta_start` to `beta_end` over the training steps.
    BetaSchedule, "beta_schedule" {
        /// Evenly spaced. What CompVis' latent diffusion calls "linear" is [`BetaSchedule::ScaledLinear`].
        Linear = "linear",
        /// The square of evenly spaced square roots.
        ScaledLinear = "scaled_linear",
        /// Such that the share of signal falls as a squared cosine (Nichol and Dhariwal, arXiv 2102.09672); takes no
        /// start and end, nor do the next two.
        SquaredCos = "squaredcos_cap_v2",
        /// Such that it falls as `exp(-12 t)`.
        Exp = "exp",
        /// Such that it falls as a Laplace distribution has it.
        Laplace = "laplace",
        /// Along a logistic curve from -6 to 6.
        Sigmoid = "sigmoid",
    }
}

words! {
    /// What the model's output means.
    Prediction, "prediction_type" {
        /// The noise.
        Epsilon = "epsilon",
        /// The velocity, `alpha noise - sigma x0`.
        VPrediction = "v_prediction",
        /// The clean latents themselves.
        Sample = "sample",
    }
}

words! {
    /// How the timesteps of a run are spaced over the training steps.
    Spacing, "timestep_spacing" {
        /// Multiples of a whole stride, from 0 (plus `steps_offset`).
        Leading = "leading",
        /// Evenly from the first to the last training step, rounded.
        Linspace = "linspace",
        /// Evenly from the last training step down, rounded.
        Trailing = "trailing",
        /// DDIM: every multiple of a whole stride below `train_steps` (plus `steps_offset`), as CompVis and ermongroup
        /// have it. There may be more of them than steps.
        Uniform = "uniform",
        /// DDIM: squares, up to 0.8 of the training steps (plus `steps_offset`), as CompVis and ermongroup have it.
        /// Timesteps may repeat.
        Quad = "quad",
    }
}

words! {
    /// The second-order formula of DPM-Solver++.
    SolverType, "solver_type" {
        /// The midpoint rule.
        Midpoint = "midpoint",
        /// Heun's rule.
        Heun = "heun",
    }
}

words! {
    /// How much noise a step of DDPM adds.
    Variance, "variance_type" {
        /// That of the step given the clean latents.
        FixedSmall = "fixed_small",
        /// The same (diffusers takes the root by way of a logarithm).
        FixedSmallLog = "fixed_small_log",
        /// The step's beta.
        FixedLarge = "fixed_large",
        /// Between the two, as the model says in the second half of its channels.
        LearnedRange = "learned_range",
    }
}

words! {
    /// Where the last step ends.
    FinalSigma, "final_sigmas_type" {
        /// At no noise.
        Zero = "zero",
        /// At the noise of training step 0.
        SigmaMin = "sigma_min",
    }
}

/// diffusers' least share of signal, 2^-24, where a noise level is divided by it.
const LEAST_SIGNAL: f32 = 1.0 / (1 << 24) as f32;

impl SamplerKind {
    /// The name that image tools show, as written into the `parameters` text of a PNG.
    pub fn title(self) -> &'static str {
        match self {
            SamplerKind::Ddim => "DDIM",
            SamplerKind::Ddpm => "DDPM",
            SamplerKind::Pndm => "PLMS",
            SamplerKind::Euler => "Euler",
            SamplerKind::EulerAncestral => "Euler a",
            SamplerKind::Heun => "Heun",
            SamplerKind::DpmSolverPp2M => "DPM++ 2M",
            SamplerKind::DpmSolverPp2MSde => "DPM++ 2M SDE",
            SamplerKind::DpmSolverPp3M => "DPM++ 3M",
            SamplerKind::DpmSolverPp3MSde => "DPM++ 3M SDE",
            SamplerKind::DpmSolverPp2S => "DPM++ 2S",
            SamplerKind::Lms => "LMS",
            SamplerKind::UniPc => "UniPC",
            SamplerKind::Lcm => "LCM",
            SamplerKind::Tcd => "TCD",
            SamplerKind::Deis => "DEIS",
            SamplerKind::Dpm2 => "DPM2",
            SamplerKind::Dpm2Ancestral => "DPM2 a",
            SamplerKind::DpmSolverPpSde => "DPM++ SDE",
        }
    }

    /// The class of diffusers that this sampler reproduces.
    pub(super) fn class(self) -> &'static str {
        match self {
            SamplerKind::Ddim => "DDIMScheduler",
            SamplerKind::Ddpm => "DDPMScheduler",
            SamplerKind::Pndm => "PNDMScheduler",
            SamplerKind::Euler => "EulerDiscreteScheduler",
            SamplerKind::EulerAncestral => "EulerAncestralDiscreteScheduler",
            SamplerKind::Heun => "HeunDiscreteScheduler",
            SamplerKind::DpmSolverPp2M
            | SamplerKind::DpmSolverPp2MSde
            | SamplerKind::DpmSolverPp3M
            | SamplerKind::DpmSolverPp3MSde => "DPMSolverMultistepScheduler",
            SamplerKind::DpmSolverPp2S => "DPMSolverSinglestepScheduler",
            SamplerKind::Lms => "LMSDiscreteScheduler",
            SamplerKind::UniPc => "UniPCMultistepScheduler",
            SamplerKind::Lcm => "LCMScheduler",
            SamplerKind::Tcd => "TCDScheduler",
            SamplerKind::Deis => "DEISMultistepScheduler",
            SamplerKind::Dpm2 => "KDPM2DiscreteScheduler",
            SamplerKind::Dpm2Ancestral => "KDPM2AncestralDiscreteScheduler",
            SamplerKind::DpmSolverPpSde => "DPMSolverSDEScheduler",
        }
    }

    /// Whether this is one of the DPM solvers.
    pub(super) fn is_dpm(self) -> bool {
        self.is_multistep_dpm() || self == SamplerKind::DpmSolverPp2S
    }

    /// Whether this is one of the DPM solvers that look back.
    pub(super) fn is_multistep_dpm(self) -> bool {
        self.is_stochastic_dpm() || matches!(self, SamplerKind::DpmSolverPp2M | SamplerKind::DpmSolverPp3M)
    }

    /// Whether this is one of the DPM solvers of the stochastic equation.
    pub(super) fn is_stochastic_dpm(self) -> bool {
        matches!(self, SamplerKind::DpmSolverPp2MSde | SamplerKind::DpmSolverPp3MSde)
    }

    /// Whether noise levels may be spaced by themselves rather than by timesteps.
    pub fn has_sigmas(self) -> bool {
        let by_level = matches!(
            self,
            SamplerKind::Euler | SamplerKind::Heun | SamplerKind::Lms | SamplerKind::UniPc | SamplerKind::Deis
        );
        by_level || self.is_halved() || self.is_dpm()
    }

    /// Whether a step takes two calls of the model, but for the last.
    pub fn calls_twice(self) -> bool {
        self.is_halved() || self == SamplerKind::Heun
    }

    /// Whether a step has a call at the level in its middle.
    fn is_halved(self) -> bool {
        matches!(self, SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral | SamplerKind::DpmSolverPpSde)
    }

    /// Whether steps go over the timesteps that a consistency model was distilled on.
    pub(super) fn is_distilled(self) -> bool {
        matches!(self, SamplerKind::Lcm | SamplerKind::Tcd)
    }

    /// Whether noise levels may be evenly spaced in lambda, as Lu et al. have them.
    pub fn has_lambdas(self) -> bool {
        self.is_multistep_dpm()
    }

    /// What the last share of signal is in a schedule that ends in none
    /// ([`Config::rescale_betas_zero_snr`](super::Config::rescale_betas_zero_snr)): 0, or diffusers' least where noise
    /// levels are ratios; nothing for the samplers that diffusers does not rescale for.
    pub(super) fn least_signal(self) -> Option<f32> {
        match self {
            SamplerKind::Ddim | SamplerKind::Ddpm | SamplerKind::Lcm | SamplerKind::Tcd => Some(0.0),
            SamplerKind::Euler | SamplerKind::EulerAncestral | SamplerKind::UniPc => Some(LEAST_SIGNAL),
            kind => kind.is_multistep_dpm().then_some(LEAST_SIGNAL),
        }
    }

    /// The spacing of timesteps where none is given.
    pub(super) fn spacing(self) -> Spacing {
        match self {
            SamplerKind::Ddim | SamplerKind::Ddpm | SamplerKind::Pndm => Spacing::Leading,
            kind if kind.is_distilled() => Spacing::Leading,
            _ => Spacing::Linspace,
        }
    }
}
