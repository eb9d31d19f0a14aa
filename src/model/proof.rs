//! The proof that META tells the truth of the programs.
//!
//! Every rule is a comparison of a field of META with a shape that the shape rules infer from the programs at the model's
//! own size, or a bound beyond which a number has no meaning. Other sizes are proven when a program is planned for them.

mod texts;

use super::{
    Classes, DECODED_CHANNELS, LatentSpace, MAX_FRAMES, MAX_SIDE, Model, PICTURE_CHANNELS, TextModel, rows_of,
    tensor_types,
};
use crate::error::{Error, Result};
use crate::format::meta::{LayerMeta, PipelineMeta, SizeBin};
use crate::format::{Packed, TensorKind};
use crate::program::shape::{Type, infer};
use crate::program::{Dim, Dims, InputKind, Program, Role, describe_attention};
use std::collections::BTreeMap;
use std::fmt::Display;
pub(super) use texts::tokenizers;
use texts::{conditioning, text_model};

/// Most channels of latents.
const MAX_CHANNELS: usize = 1 << 10;
/// Most steps of a request that names none; the longest schedules that models are trained with have 4000.
const MAX_STEPS: usize = 1 << 12;

/// The fault that a field of META does not say what it should.
fn wrong<T>(field: &str, expected: impl Display, got: impl Display) -> Result<T> {
    Err(Error::format("META", 0u64, field, expected, got))
}

/// A number of META, which must be at least `least` and at most `most`.
fn number(field: &str, value: u32, least: usize, most: usize) -> Result<usize> {
    match value as usize {
        n if (least..=most).contains(&n) => Ok(n),
        n => wrong(field, format!("{least} to {most}"), n),
    }
}

pub(super) fn model<D: AsRef<[u8]>>(packed: &Packed<D>) -> Result<Model<'_, D>> {
    let p = &packed.meta().pipeline;
    let latents = latent_space(packed, p)?;
    let model = Model {
        packed,
        latents,
        size_bins: size_bins(p, latents)?,
        classes: classes(packed, p)?,
        text: p.text.as_ref().map(|text| text_model(packed, text)).transpose()?,
        image_encoder: p.encoder,
        refiner: p.refiner.as_ref(),
        decoder: has(packed, Role::VaeDecoder),
        sampler: &p.sampler,
        steps: number("steps", p.steps, 1, MAX_STEPS)?,
        guidance_scale: p.guidance_scale,
        guided_channels: match p.guided_channels {
            Some(channels) => number("guided_channels", channels, 1, latents.channels)?,
            None => latents.channels,
        },
    };
    denoiser(&model, Role::Denoiser)?;
    match (&model.refiner, has(packed, Role::Refiner)) {
        (Some(_), _) => denoiser(&model, Role::Refiner)?,
        (None, true) => return wrong("refiner", "what the refiner reads", "none"),
        (None, false) => {}
    }
    decoder(&model)?;
    image_encoder(&model)?;
    defaults(&model)?;
    Ok(model)
}

fn has<D: AsRef<[u8]>>(packed: &Packed<D>, role: Role) -> bool {
    packed.programs().iter().any(|p| p.role == role)
}

fn latent_space<D: AsRef<[u8]>>(packed: &Packed<D>, p: &PipelineMeta) -> Result<LatentSpace> {
    let channels = number("latent_channels", p.latent_channels, 1, MAX_CHANNELS)?;
    let pixels = number("pixels_per_latent", p.pixels_per_latent, 1, 1 << 8)?;
    let most = MAX_SIDE / pixels;
    let multiple = number("latent_multiple", p.latent_multiple, 1, most)?;
    let mut size = [0; 2];
    for (to, &side) in size.iter_mut().zip(&p.latent_size) {
        *to = number("latent_size", side, 1, most)?;
        if !to.is_multiple_of(multiple) {
            return wrong("latent_size", format!("multiples of latent_multiple, {multiple}"), side);
        }
    }
    let frames = number("frames", p.frames, 1, MAX_FRAMES)?;
    let denoiser = packed.program(Role::Denoiser)?;
    let sample = denoiser.inputs.iter().find(|input| input.kind == InputKind::Sample);
    let video = sample.is_some_and(|sample| sample.dims.contains(&Dim::Frames));
    if frames > 1 && !video {
        return wrong("frames", "1, as the denoiser reads images", frames);
    }
    Ok(LatentSpace { channels, size, frames, video, multiple, pixels })
}

/// The sizes that the model was made for, each of whole latents of `space`.
fn size_bins(p: &PipelineMeta, space: LatentSpace) -> Result<&[SizeBin]> {
    let multiple = space.pixel_multiple();
    for SizeBin { ratio, size } in &p.size_bins {
        if !(ratio.is_finite() && *ratio > 0.0) {
            return wrong("size_bins", "positive ratios", ratio);
        }
        for &side in size {
            if !number("size_bins", side, 1, MAX_SIDE)?.is_multiple_of(multiple) {
                return wrong("size_bins", format!("multiples of {multiple} pixels"), side);
            }
        }
    }
    Ok(&p.size_bins)
}

/// The types of all values of `program` for one sample of such axes.
fn types<D: AsRef<[u8]>>(packed: &Packed<D>, program: &Program, dims: Dims) -> Result<Vec<Type>> {
    infer(program, &tensor_types(packed), &dims)
}

/// Length of the last axis of the input of `kind`.
fn width(program: &Program, types: &[Type], kind: InputKind) -> Option<usize> {
    program.input(kind).map(|value| types[value.0 as usize].cols())
}

fn classes<'m, D: AsRef<[u8]>>(packed: &'m Packed<D>, p: &'m PipelineMeta) -> Result<Option<Classes<'m>>> {
    let program = packed.program(Role::Denoiser)?;
    let reads = program.input(InputKind::ClassLabels).is_some();
    if reads != (p.classes > 0) {
        let expected = if reads { "a number, as the denoiser reads class labels" } else { "0, as it reads none" };
        return wrong("classes", expected, p.classes);
    }
    if !reads {
        if p.null_class != 0 {
            return wrong("null_class", "0, as there are no classes", p.null_class);
        }
        return match p.class_names.first_key_value() {
            None => Ok(None),
            Some((class, _)) => wrong("class_names", "none, as there are no classes", class),
        };
    }
    let rows = rows_of(packed, program, InputKind::ClassLabels);
    let count = number("classes", p.classes, 1, rows)?;
    let classes = Classes { count, null: p.null_class, names: &p.class_names };
    if p.null_class as usize >= rows {
        return wrong("null_class", format!("a row of the class table, below {rows}"), p.null_class);
    }
    match p.class_names.keys().find(|&&label| !classes.contains(label)) {
        None => Ok(Some(classes)),
        Some(label) => wrong("class_names", format!("labels 0 to {}", count - 1), label),
    }
}

/// Proves that the denoiser of `role` works on the model's latents and reads what META says.
fn denoiser<D: AsRef<[u8]>>(model: &Model<'_, D>, role: Role) -> Result<()> {
    let program = model.packed.program(role)?;
    let LatentSpace { channels, size: [height, width_], frames, .. } = model.latents;
    let tokens = model.text.as_ref().map_or(1, TextModel::tokens);
    let values = types(model.packed, program, Dims { height, width: width_, tokens, frames, ..Dims::ONE })?;
    let sample = width(program, &values, InputKind::Sample).unwrap_or(0);
    if sample != channels {
        return wrong("latent_channels", format!("{sample}, as the {} reads", role.name()), channels);
    }
    let output = values[program.output.0 as usize];
    // Frames lie below each other.
    let rows = frames * height;
    let fits = matches!(output.dims()[..], [1, h, w, c] if [h, w] == [rows, width_] && c >= channels);
    if !fits {
        let expected = format!("latents of {:?}, as the {} makes", output.dims(), role.name());
        return wrong("latent_channels", expected, format!("[1, {rows}, {width_}, {channels}]"));
    }
    if program.input(InputKind::Tokens).is_some() {
        return wrong(role.name(), "a program that reads latents", "one that reads tokens");
    }
    if role == Role::Refiner && program.input(InputKind::ClassLabels).is_some() {
        return wrong("refiner", "a program that reads prompts", "one that reads class labels");
    }
    conditioning(model, role, program, &values)
}

fn decoder<D: AsRef<[u8]>>(model: &Model<'_, D>) -> Result<()> {
    let LatentSpace { channels, size: [height, width_], pixels, .. } = model.latents;
    if !model.decoder {
        // Without a decoder the latents are the picture.
        return match (PICTURE_CHANNELS.contains(&channels), pixels) {
            (true, 1) => Ok(()),
            (false, 1) => wrong("latent_channels", "1, 3 or 4 (grey, RGB, RGBA), as there is no decoder", channels),
            _ => wrong("pixels_per_latent", "1, as there is no decoder", pixels),
        };
    }
    let program = model.packed.program(Role::VaeDecoder)?;
    let values = types(model.packed, program, Dims { height, width: width_, ..Dims::ONE })?;
    let reads = width(program, &values, InputKind::Sample).unwrap_or(0);
    if program.inputs.len() != 1 || reads != channels {
        return wrong("latent_channels", format!("{reads}, as the decoder reads"), channels);
    }
    let made = values[program.output.0 as usize];
    let told = [1, height * pixels, width_ * pixels, DECODED_CHANNELS];
    if made.dims() != told {
        let expected = format!("images of {:?}, as the decoder makes", made.dims());
        return wrong("pixels_per_latent", expected, format!("{told:?}"));
    }
    Ok(())
}

fn image_encoder<D: AsRef<[u8]>>(model: &Model<'_, D>) -> Result<()> {
    let LatentSpace { channels, size, pixels, .. } = model.latents;
    let Some(encoder) = model.image_encoder else {
        return match has(model.packed, Role::VaeEncoder) {
            false => Ok(()),
            true => wrong("encoder", "the scale of encoded latents", "none"),
        };
    };
    if !model.decoder {
        return wrong("encoder", "none, as there is no decoder", "the scale of encoded latents");
    }
    if !(encoder.scale.is_finite() && encoder.scale != 0.0 && encoder.shift.is_finite()) {
        return wrong("encoder", "a finite scale, not 0, and a finite shift", format!("{encoder:?}"));
    }
    let program = model.packed.program(Role::VaeEncoder)?;
    let [height, width_] = size.map(|n| n * pixels);
    let values = types(model.packed, program, Dims { height, width: width_, ..Dims::ONE })?;
    let reads = width(program, &values, InputKind::Sample).unwrap_or(0);
    let made = values[program.output.0 as usize];
    let told = [1, size[0], size[1], 2 * channels];
    if program.inputs.len() != 1 || reads != DECODED_CHANNELS || made.dims() != told {
        let expected = format!("[1, h, w, {reads}] to {:?}, as the image encoder has", made.dims());
        return wrong("latent_channels", expected, format!("[1, h, w, 3] to {told:?}"));
    }
    Ok(())
}

/// Settings for requests that name none: they must make a run.
fn defaults<D: AsRef<[u8]>>(model: &Model<'_, D>) -> Result<()> {
    if !model.guidance_scale.is_finite() {
        return wrong("guidance_scale", "a finite number", model.guidance_scale);
    }
    if !model.conditional() && model.guidance_scale > 1.0 {
        return wrong("guidance_scale", "at most 1 for a model without conditions", model.guidance_scale);
    }
    let table = model.sampler.table(model.steps).or_else(|e| wrong("sampler", "settings that make a run", e))?;
    for role in [Role::Denoiser, Role::Refiner].into_iter().filter(|&role| has(model.packed, role)) {
        let program = model.packed.program(role)?;
        let tokens = model.text.as_ref().map_or(1, TextModel::tokens);
        let LatentSpace { size: [height, width], frames, .. } = model.latents;
        let dims = Dims { height, width, tokens, frames, ..Dims::ONE };
        let outputs = types(model.packed, program, dims)?[program.output.0 as usize].cols();
        if table.learned() && outputs < 2 * model.latents.channels {
            let expected = format!("another than learned_range: the {} makes no variances", role.name());
            return wrong("variance", expected, "learned_range");
        }
    }
    Ok(())
}

/// Proves that the report of the quantization is one of the tensors there are.
pub(super) fn report<D: AsRef<[u8]>>(packed: &Packed<D>) -> Result<()> {
    let meta = packed.meta();
    let quantization = &meta.quantization;
    if !(quantization.average_bits.is_finite() && (0.0..=64.0).contains(&quantization.average_bits)) {
        return wrong("average_bits", "0 to 64", quantization.average_bits);
    }
    let (told, words) = (&quantization.attention, describe_attention(packed.programs()));
    if *told != words {
        let expected = words.map_or("none, as no program has any".into(), |words| words + ", as the programs have");
        return wrong("attention", expected, format!("{told:?}"));
    }
    let tensors: BTreeMap<&str, _> = packed.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
    for layer in &quantization.layers {
        let LayerMeta { name, method, activation_bits, error, exact_error, bytes, .. } = layer;
        let LayerMeta { output_error, nearest_output_error, .. } = layer;
        let Some(tensor) = tensors.get(format!("{name}.weight").as_str()) else {
            return wrong("layers", "a tensor for each", format!("{name:?}"));
        };
        let stored = match tensor.kind {
            TensorKind::F32 => "f32".into(),
            TensorKind::F16 => "f16".into(),
            TensorKind::Codes { bits, .. } => format!("-{bits}"),
            TensorKind::Bytes => "a file of bytes".into(),
        };
        if !method.ends_with(&stored) || *bytes != tensor.bytes as u64 {
            let expected = format!("{stored} of {} bytes, as the tensor is stored", tensor.bytes);
            return wrong(&format!("layer {name}"), expected, format!("{method} of {bytes}"));
        }
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let mut errors = [Some(*error), Some(*exact_error), *output_error, *nearest_output_error].into_iter().flatten();
        if !matches!(activation_bits, 2..=8 | 32) || !errors.all(finite) {
            let got = format!("{activation_bits} bits, errors {error}, {exact_error}, {output_error:?}");
            return wrong(&format!("layer {name}"), "2 to 8 or 32 bits of activations, errors of at least 0", got);
        }
    }
    let named = meta.aliases.keys().map(|name| ("aliases", name));
    let named = named.chain(meta.steps.keys().map(|name| ("steps", name)));
    let mut named = named.chain(meta.made.iter().map(|name| ("made", name)));
    match named.find(|(_, name)| !tensors.contains_key(name.as_str())) {
        Some((field, name)) => wrong(field, "names of tensors", format!("{name:?}")),
        None => Ok(()),
    }
}
