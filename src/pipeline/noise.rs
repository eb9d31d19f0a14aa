//! The noise of a request: initial latents, and what samplers add on the way.

use super::denoise::Stage;
use super::{Pipeline, Request, permute};
use crate::rng::{FastRng, TorchRng};

/// Which generator makes the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseSource {
    /// One stream per image, from its own seed.
    Fast,
    /// torch's CPU generator, one stream per request.
    Torch,
}

impl<D: AsRef<[u8]>> Pipeline<'_, D> {
    /// Noise that initial latents are made of, `(n, h, w, c)`, and the noise of each call and image, `(calls, n, ..)`.
    /// `torch` is the generator of [`NoiseSource::Torch`].
    pub(super) fn noise(&self, request: &Request, stages: &[Stage], torch: &mut TorchRng) -> (Vec<f32>, Vec<f32>) {
        let n = request.subjects.len();
        let len = self.latent_len(request);
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
        let channels = self.meta().pipeline.latent_channels as usize;
        let pixels = len / channels;
        (permute(&latents, [n, channels, pixels]), permute(&noise, [calls * n, channels, pixels]))
    }
}
