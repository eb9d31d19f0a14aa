//! What a sampling run keeps in the arena beside the denoiser's values, and the arguments of its two ops.

use crate::backend::args::{
    ALIGN, Floats, Guidance, Inpaint, ModelInputArgs, Rescale, SamplerStepArgs, Slot, Thresholding,
};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::program::{InputKind, Program};
use crate::sampler::{ROW_FLOATS, Table};

/// How the outputs of the denoiser become steps, beside the sampler's table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guiding {
    /// Guidance, if there are unconditional samples.
    pub guidance: Option<Guidance>,
    /// Share of rescaled guidance, 0 to 1; see [`Rescale`].
    pub rescale: f32,
    /// Whether a mask keeps part of an image; see [`Inpaint`].
    pub blend: bool,
}

/// The latents of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latents {
    /// Images.
    pub images: usize,
    /// Pixels of one.
    pub pixels: usize,
    /// Channels.
    pub channels: usize,
}

impl Latents {
    /// Floats in all.
    pub fn floats(&self) -> usize {
        self.images * self.pixels * self.channels
    }
}

/// Places of a run, one after the other.
///
/// `bytes` of them are to be reserved when the denoiser is planned; they then lie from the plan's `reserved` on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMemory {
    /// The table's rows, one per call, [encoded](crate::sampler::Row::encode).
    pub rows: Slot,
    /// The states, the latents first.
    pub states: Slot,
    /// Noise of each call, of the latents' size.
    pub noise: Option<Slot>,
    /// Mask, image and its noise.
    pub blend: Option<Inpaint>,
    rescale: Option<Rescale>,
    threshold: Option<Thresholding>,
    guidance: Option<Guidance>,
    n_states: usize,
    latents: Latents,
    /// Bytes in all.
    pub bytes: usize,
}

impl StepMemory {
    /// The places of a run by `table`, from byte `at`, a multiple of [`ALIGN`].
    pub fn new(at: usize, table: &Table, latents: Latents, guiding: Guiding) -> Self {
        let (calls, bytes) = (table.rows.len(), latents.floats() * 4);
        let mut end = at;
        let mut place = |count: usize, stride: usize| {
            let slot = Slot { at: end, stride };
            end += count.next_multiple_of(ALIGN);
            slot
        };
        let rows = place(calls * ROW_FLOATS * 4, ROW_FLOATS * 4);
        let scratch = if table.threshold.is_some() { bytes / latents.images } else { 0 };
        let states = place(table.states * bytes + scratch, 0);
        let stride = bytes.next_multiple_of(ALIGN);
        let noise = table.noise.then(|| place(calls * stride, stride));
        let blend = guiding.blend.then(|| Inpaint {
            mask: place(bytes / latents.channels, 0),
            init: place(bytes, 0),
            noise: place(bytes, 0),
        });
        let rescale = (guiding.guidance.is_some() && guiding.rescale != 0.0).then(|| Rescale {
            share: guiding.rescale,
            images: latents.images,
            factors: place(latents.images * 4, 0),
        });
        let (guidance, n_states) = (guiding.guidance, table.states);
        let threshold = table.threshold.map(|threshold| Thresholding { threshold, images: latents.images });
        StepMemory { rows, states, noise, blend, rescale, threshold, guidance, n_states, latents, bytes: end - at }
    }

    /// Arguments of the two ops around a call of `program`, planned as `plan`.
    ///
    /// They do not come from a program, so what the shape rules prove of all others is proven here: that the latents, once
    /// per sample of guidance, are the sample input, and that the result has a row for each of their pixels.
    ///
    /// # Errors
    /// [`Error::Request`] if the program is no denoiser of such latents.
    pub fn ops(&self, program: &Program, plan: &Plan) -> Result<(ModelInputArgs, SamplerStepArgs)> {
        let Latents { images, pixels, channels } = self.latents;
        let samples = images * self.copies();
        let wrong = |what: &str, expected: String, got: String| Err(Error::request(what, expected, got));
        let Some(sample) = program.input(InputKind::Sample).map(|value| value.0 as usize) else {
            return wrong("denoiser", "a program that reads latents".into(), "one that reads none".into());
        };
        let axes: Vec<usize> = program.inputs[sample].dims.iter().map(|&d| plan.binding.dims.resolve(d)).collect();
        if axes.iter().product::<usize>() != samples * pixels * channels || axes.last() != Some(&channels) {
            let expected = format!("{samples} x {pixels} x {channels} latents");
            return wrong("denoiser input", expected, format!("{axes:?}"));
        }
        let output = plan.output_type.dims();
        let rows: usize = output[..output.len() - 1].iter().product();
        if output[0] != samples || rows != samples * pixels || plan.output.cols < channels {
            let expected = format!("{samples} x {pixels} rows of at least {channels} channels");
            return wrong("denoiser output", expected, format!("{output:?}"));
        }
        Ok((self.input(plan.inputs[sample]), self.step(plan.output)))
    }

    fn copies(&self) -> usize {
        if self.guidance.is_some() { 2 } else { 1 }
    }

    /// Arguments for the denoiser's input at `sample`, once per sample of guidance.
    pub fn input(&self, sample: Slot) -> ModelInputArgs {
        let copies = self.copies();
        ModelInputArgs { rows: self.rows, state: self.states, len: self.latents.floats(), copies, sample }
    }

    /// Arguments for the step after the denoiser's output `model`.
    pub fn step(&self, model: Floats) -> SamplerStepArgs {
        SamplerStepArgs {
            rows: self.rows,
            states: self.states,
            n_states: self.n_states,
            len: self.latents.floats(),
            channels: self.latents.channels,
            model,
            guidance: self.guidance,
            rescale: self.rescale,
            threshold: self.threshold,
            noise: self.noise,
            blend: self.blend,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Config, SamplerKind};

    #[test]
    fn places_follow_each_other() {
        let table = Config { eta: 1.0, ..Config::default() }
            .with_kind(SamplerKind::DpmSolverPp2MSde)
            .table(3)
            .expect("a table");
        let latents = Latents { images: 3, pixels: 5, channels: 4 };
        let guiding = Guiding { guidance: Some(Guidance { scale: 2.0, channels: 4 }), rescale: 0.5, blend: true };
        let memory = StepMemory::new(128, &table, latents, guiding);
        // 240 bytes of latents take 256; two states lie next to each other.
        assert_eq!((memory.rows.at, memory.states.at), (128, 128 + 3 * 320));
        let noise = memory.noise.expect("noise");
        assert_eq!((noise.at, noise.stride), (1088 + 512, 256));
        let blend = memory.blend.expect("a mask");
        assert_eq!((blend.mask.at, blend.init.at, blend.noise.at), (1600 + 768, 2368 + 64, 2432 + 256));
        let rescale = memory.step(Floats { slot: Slot::default(), rows: 30, cols: 4, element: Default::default() });
        assert_eq!(rescale.rescale.map(|r| r.factors.at), Some(2688 + 256));
        assert_eq!(memory.bytes, 2944 + 64 - 128);

        let plain = StepMemory::new(0, &Config::default().table(3).expect("a table"), latents, Guiding::default());
        assert_eq!((plain.noise, plain.blend, plain.bytes), (None, None, 960 + 256));
        let unguided = StepMemory::new(0, &table, latents, Guiding { guidance: None, ..guiding });
        assert_eq!(unguided.step(rescale.model).rescale, None, "nothing to scale back");
    }
}
