//! From a request to images: prompts, initial noise, the guided step loop, decoding. Generic over the back end.
//!
//! ```text
//! texts --tokenizer, text encoders--> prompts --+
//! labels ---------------------------------------+--> conditions --+
//! seeds --rng--> noise --+--> latents ----------------------------+--> step loop --> decoder --> image in 0..1
//! image --encoder--------+                        sampler table --+    (denoiser, guidance, sampler row; refiner)
//! ```
//!
//! A [`Session`] holds a model and a back end, and keeps programs bound. A [`Request`] becomes [`Plans`] and then a
//! [`Job`], which makes one step after the other.
//!
//! Image `k` of a request is the same whatever else is in the batch and whatever the batch size: its noise comes from
//! its own stream, and no op mixes samples. (With [`NoiseSource::Torch`] the noise of a request is one stream, as in
//! diffusers' pipelines; a [`NoiseStream`] then tells an image alone of the company it was in.)

mod calls;
mod conditions;
mod decode;
mod init;
mod job;
mod noise;
mod plans;
mod prompts;
mod request;
mod session;
mod texts;
mod tiles;

pub use calls::{ModelCall, Predicted};
pub use init::InitImage;
pub use job::{Event, Job, Output, Preview};
pub use noise::{NoiseSource, NoiseStream};
pub use plans::Plans;
pub use prompts::{Embeddings, EncoderFeatures, PromptFeatures, Prompts};
pub use request::{DECODE_BYTES, MAX_IMAGES, REFINER_START, Request, TABLE_BYTES};
pub use session::Session;
pub use texts::Texts;

/// Swaps the last two axes of `(n, a, b)`.
pub fn swap_last_axes(x: &[f32], [n, a, b]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for i in 0..n {
        let (from, to) = (&x[i * a * b..][..a * b], &mut out[i * a * b..][..a * b]);
        for (r, row) in from.chunks_exact(b).enumerate() {
            for (c, &v) in row.iter().enumerate() {
                to[c * a + r] = v;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapping_twice_is_the_identity() {
        let x: Vec<f32> = (0..2 * 3 * 5).map(|i| i as f32).collect();
        let y = swap_last_axes(&x, [2, 3, 5]);
        assert_eq!(&y[..4], &[0.0, 5.0, 10.0, 1.0]);
        assert_eq!(swap_last_axes(&y, [2, 5, 3]), x);
    }
}
