//! What happens to the latents between model calls: `kernels/sampler.cu`.

use super::args::{Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use crate::sampler::ROW_FLOATS;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Scaled copies of the latents.
    ModelInputArgs, 64 { calls: u64, rows: u64, state: u64, sample: Floats, len: u32, copies: u32 }

    /// Each image's factor of rescaled guidance.
    GuidanceFactorsArgs, 72 {
        calls: u64, factors: u64, model: Floats, per_image: u32, channels: u32, guided: u32, guidance: f32, share: f32,
        pad: u32,
    }

    /// Guidance, one row of the sampler's table, blending.
    SamplerStepArgs, 128 {
        calls: u64, rows: u64, states: u64, noise: u64, noise_stride: u64,
        factors: u64, mask: u64, init: u64, init_noise: u64, model: Floats,
        len: u32, n_states: u32, channels: u32, guided: u32, guidance: f32, per_image: u32,
    }

    /// On to the next call.
    AdvanceArgs, 8 { calls: u64 }
}

/// Threads per block; each has one element of the latents.
const BLOCK: u32 = 256;

// The kernels know the distance between rows.
const _: () = assert!(ROW_FLOATS == 80);

fn launch(entry: &'static str, len: usize, args: &[u8], issue: &mut impl FnMut(Launch<'_>)) {
    let grid = [len.div_ceil(BLOCK as usize) as u32, 1, 1];
    issue(Launch { kernel: Kernel { module: "sampler", entry }, grid, block: BLOCK, shared: 0, args });
}

/// See [`Backend::model_input`](crate::backend::Backend::model_input).
pub fn model_input(frame: &Frame, args: &args::ModelInputArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let sample = Floats {
        at: frame.place(args.sample, args.copies * args.len * 4),
        stride: 0,
        rows: args.copies as u32,
        cols: args.len as u32,
        half: 0, // a program's inputs are f32
        pad: 0,
    };
    let kernel_args = ModelInputArgs {
        calls: frame.calls,
        rows: frame.place_of_run(args.rows, ROW_FLOATS * 4),
        state: frame.place(args.state, args.len * 4),
        sample,
        len: args.len as u32,
        copies: args.copies as u32,
    };
    launch("model_input", args.len, kernel_args.as_bytes(), issue);
}

/// See [`Backend::sampler_step`](crate::backend::Backend::sampler_step).
pub fn sampler_step(frame: &Frame, args: &args::SamplerStepArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let images = args.rescale.map_or(1, |rescale| rescale.images);
    let per_image = (args.len / images) as u32;
    let (guided, guidance) = args.guidance.map_or((0, 0.0), |guidance| (guidance.channels as u32, guidance.scale));
    // Conditional samples first and unconditional ones after, each of as many pixels as the latents.
    let (pixels, halves) = (args.len / args.channels, if args.guidance.is_some() { 2 } else { 1 });
    assert_eq!(args.model.rows, halves * pixels, "rows of the model's output for {} latents", args.len);
    assert!(args.threshold.is_none(), "a run that the plan refuses");
    assert!(args.channels <= args.model.cols, "{} channels of {}", args.channels, args.model.cols);
    let at = |slot: Option<args::Slot>, len: usize| slot.map_or(0, |slot| frame.place(slot, len * 4));
    let kernel_args = SamplerStepArgs {
        calls: frame.calls,
        rows: frame.place_of_run(args.rows, ROW_FLOATS * 4),
        states: frame.place(args.states, args.n_states * args.len * 4),
        noise: args.noise.map_or(0, |noise| frame.place_of_run(noise, args.len * 4)),
        noise_stride: args.noise.map_or(0, |noise| noise.stride as u64),
        factors: at(args.rescale.map(|rescale| rescale.factors), images),
        mask: at(args.blend.map(|blend| blend.mask), pixels),
        init: at(args.blend.map(|blend| blend.init), args.len),
        init_noise: at(args.blend.map(|blend| blend.noise), args.len),
        model: frame.floats(&args.model),
        len: args.len as u32,
        n_states: args.n_states as u32,
        channels: args.channels as u32,
        guided,
        guidance,
        per_image,
    };
    if let Some(rescale) = args.rescale {
        let factors_args = GuidanceFactorsArgs {
            calls: frame.calls,
            factors: kernel_args.factors,
            model: kernel_args.model,
            per_image,
            channels: args.channels as u32,
            guided,
            guidance,
            share: rescale.share,
            pad: 0,
        };
        let kernel = Kernel { module: "sampler", entry: "guidance_factors" };
        issue(Launch { kernel, grid: [images as u32, 1, 1], block: BLOCK, shared: 0, args: factors_args.as_bytes() });
    }
    launch("sampler_step", args.len, kernel_args.as_bytes(), issue);
}

/// Counts the current call up, on the device.
pub fn advance(frame: &Frame, issue: &mut impl FnMut(Launch<'_>)) {
    let args = AdvanceArgs { calls: frame.calls };
    let kernel = Kernel { module: "sampler", entry: "advance" };
    issue(Launch { kernel, grid: [1, 1, 1], block: 1, shared: 0, args: args.as_bytes() });
}
