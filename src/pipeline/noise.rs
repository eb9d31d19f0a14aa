//! The noise of a request: initial latents, and what samplers add on the way.

use super::request::{Request, Stage};
use super::swap_last_axes;
use crate::rng::{FastRng, TorchRng};

/// Which generator makes the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseSource {
    /// One stream per image, from its own seed.
    #[default]
    Fast,
    /// torch's CPU generator, one stream per request.
    Torch,
}

/// The noise that samplers add.
#[derive(Debug, Default)]
pub(super) struct RunNoise {
    /// `(calls, n, h, w, c)` over all networks; empty if no call adds any.
    values: Vec<f32>,
    /// Floats of one call.
    per_call: usize,
}

impl RunNoise {
    /// The noise of all images at a call, `(n, h, w, c)`.
    pub fn of_call(&self, call: usize) -> &[f32] {
        &self.values[call * self.per_call..][..self.per_call]
    }
}

/// Noise that initial latents are made of, `(n, h, w, c)`, and the noise of the calls of `stages`. Latents have `channels`
/// channels; `torch` is the generator of [`NoiseSource::Torch`].
pub(super) fn draw(request: &Request, channels: usize, stages: &[Stage], torch: &mut TorchRng) -> (Vec<f32>, RunNoise) {
    let n = request.prompts.len();
    let pixels = request.latent_size[0] * request.latent_size[1];
    let len = pixels * channels;
    let rows = || stages.iter().flat_map(|s| &s.table.rows);
    let calls = if stages.iter().any(|s| s.table.noise) { rows().count() } else { 0 };
    let mut latents = vec![0.0; n * len];
    let mut noise = vec![0.0; calls * n * len];
    match request.noise {
        NoiseSource::Torch => {
            if request.latents.is_none() {
                torch.randn(&mut latents);
            }
            for (row, noise) in rows().zip(noise.chunks_exact_mut(n * len)) {
                if row.noise() {
                    torch.randn(noise);
                }
            }
        }
        NoiseSource::Fast => {
            for (k, latents) in latents.chunks_exact_mut(len).enumerate() {
                let mut rng = FastRng::for_image(request.seed, k as u64);
                rng.randn(latents);
                for call in 0..calls {
                    rng.randn(&mut noise[(call * n + k) * len..][..len]);
                }
            }
        }
    }
    if let Some(given) = &request.latents {
        latents.copy_from_slice(given);
    }
    // Generators and callers speak (n, c, h, w); the loop is channels-last.
    let values = swap_last_axes(&noise, [calls * n, channels, pixels]);
    (swap_last_axes(&latents, [n, channels, pixels]), RunNoise { values, per_call: n * len })
}
