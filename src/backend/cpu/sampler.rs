//! What happens to the latents between model calls.

use super::arena::{Arena, floats_mut};
use super::math::exp;
use super::simd::scalar::Scalar;
use crate::backend::args::{Guidance, ModelInputArgs, SamplerStepArgs};
use crate::sampler::{COLUMNS, MAX_STATES, NOISE, OUTPUT, ROW_FLOATS, X0};
use std::ops::Range;

/// See [`Backend::model_input`](crate::backend::Backend::model_input).
pub fn model_input(arena: &mut Arena, args: &ModelInputArgs) {
    let bytes = args.len * args.copies * 4;
    let (out, reads) = arena.write(args.sample.at..args.sample.at + bytes);
    let state: &[f32] = reads.slice(args.state.at, args.len);
    let row: &[f32] = reads.slice(reads.of_run(args.rows), ROW_FLOATS);
    let scale = row[0];
    for copy in floats_mut(out).chunks_exact_mut(args.len) {
        for (to, from) in copy.iter_mut().zip(state) {
            *to = scale * from;
        }
    }
}

/// See [`Backend::sampler_step`](crate::backend::Backend::sampler_step).
pub fn sampler_step(arena: &mut Arena, args: &SamplerStepArgs) {
    let at = args.states.at;
    // Where an image's magnitudes are put in order.
    let scratch = args.threshold.map_or(0, |t| args.len / t.images);
    let (region, reads) = arena.write(at..at + (args.n_states * args.len + scratch) * 4);
    let (states, scratch) = floats_mut(region).split_at_mut(args.n_states * args.len);
    let noise: Option<&[f32]> = args.noise.map(|n| reads.slice(reads.of_run(n), args.len));
    let row: &[f32] = reads.slice(reads.of_run(args.rows), ROW_FLOATS);
    let ([_, a, b, most, keep_clean, keep_noise, base, slope], next) =
        row.split_first_chunk().expect("a row is longer");
    let learned = *base != 0.0 || *slope != 0.0;
    let blend = args.blend.map(|blend| {
        let mask: &[f32] = reads.slice(blend.mask.at, args.len / args.channels);
        let [init, noise]: [&[f32]; 2] = [blend.init, blend.noise].map(|slot| reads.slice(slot.at, args.len));
        (mask, init, noise)
    });
    let model = Model::new(reads.floats(&args.model), args);
    let images = args.rescale.map(|r| r.images).or(args.threshold.map(|t| t.images)).unwrap_or(1);
    let per_image = args.len / images;
    for image in 0..images {
        let range = image * per_image..(image + 1) * per_image;
        let factor = args.rescale.map(|rescale| model.factor(rescale.share, range.clone()));
        let output = |i: usize| factor.map_or(model.output(i), |factor| model.output(i) * factor);
        let limit = args.threshold.map(|t| {
            for (to, i) in scratch.iter_mut().zip(range.clone()) {
                *to = (a * states[i] + b * output(i)).abs();
            }
            t.threshold.of(scratch)
        });
        for i in range {
            let output = output(i);
            let mut old = [0.0; MAX_STATES];
            for (s, old) in old[..args.n_states].iter_mut().enumerate() {
                *old = states[s * args.len + i];
            }
            let x0 = a * old[0] + b * output;
            let x0 = limit.map_or_else(|| x0.clamp(-most, *most), |limit| x0.clamp(-limit, limit) / limit);
            for (s, next) in next.chunks_exact(COLUMNS).take(args.n_states).enumerate() {
                let mut new = next[OUTPUT] * output + next[X0] * x0;
                for (c, old) in next[..args.n_states].iter().zip(&old) {
                    // A term that does not count is not read: a state may be unset before its first use.
                    new += if *c == 0.0 { 0.0 } else { c * old };
                }
                if let Some(noise) = noise.filter(|_| next[NOISE] != 0.0) {
                    // The portable tier's, so that all tiers give the same.
                    let gain = if learned { exp::<Scalar>(base + slope * model.variance(i)) } else { 1.0 };
                    new += next[NOISE] * (gain * noise[i]);
                }
                if let Some((mask, init, noise)) = blend.filter(|_| s == 0) {
                    let inside = mask[i / args.channels];
                    new = (1.0 - inside) * (keep_clean * init[i] + keep_noise * noise[i]) + inside * new;
                }
                states[s * args.len + i] = new;
            }
        }
    }
}

/// The model's output, element by element of the latents.
struct Model<'a> {
    values: &'a [f32],
    cols: usize,
    channels: usize,
    /// First value of the unconditional samples.
    unconditional: usize,
    guidance: Option<Guidance>,
}

impl<'a> Model<'a> {
    fn new(values: &'a [f32], args: &SamplerStepArgs) -> Self {
        let (channels, cols) = (args.channels, args.model.cols);
        Model { values, cols, channels, unconditional: args.len / channels * cols, guidance: args.guidance }
    }

    fn at(&self, i: usize) -> usize {
        i / self.channels * self.cols + i % self.channels
    }

    /// What the conditional samples have at element `i`.
    fn conditional(&self, i: usize) -> f32 {
        self.values[self.at(i)]
    }

    /// The output at element `i`, guided.
    fn output(&self, i: usize) -> f32 {
        let c = self.conditional(i);
        match self.guidance {
            Some(Guidance { scale, channels }) if i % self.channels < channels => {
                let u = self.values[self.unconditional + self.at(i)];
                u + scale * (c - u)
            }
            _ => c,
        }
    }

    /// The variance that belongs to element `i`, of the conditional samples.
    fn variance(&self, i: usize) -> f32 {
        self.values[self.at(i) + self.channels]
    }

    /// What the elements of an image are multiplied with; see [`Rescale`](crate::backend::args::Rescale).
    fn factor(&self, share: f32, image: Range<usize>) -> f32 {
        let wanted = deviations(image.clone(), |i| self.conditional(i));
        let guided = deviations(image, |i| self.output(i));
        let ratio = if guided > 0.0 { (wanted / guided).sqrt() } else { 1.0 };
        share * ratio + (1.0 - share)
    }
}

/// The sum of the squares of `f` less its mean.
fn deviations(range: Range<usize>, f: impl Fn(usize) -> f32) -> f32 {
    let mean = lane_sum(range.clone(), &f) / range.len() as f32;
    lane_sum(range, |i| (f(i) - mean) * (f(i) - mean))
}

/// The sum of `f` over `range`, in lanes that are then folded in halves: the order of a block of the CUDA kernel.
fn lane_sum(range: Range<usize>, f: impl Fn(usize) -> f32) -> f32 {
    const LANES: usize = 256;
    let mut lanes = [0.0; LANES];
    for (k, i) in range.enumerate() {
        lanes[k % LANES] += f(i);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for k in 0..half {
            lanes[k] += lanes[k + half];
        }
        half /= 2;
    }
    lanes[0]
}
