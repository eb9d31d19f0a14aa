//! The proof that META tells the truth of the programs.
//!
//! Every rule is a comparison of a field of META with a shape that the shape rules infer from the programs at the model's
//! own size, or a bound beyond which a number has no meaning. Other sizes are proven when a program is planned for them.

use super::{
    Classes, DECODED_CHANNELS, LatentSpace, MAX_SIDE, Model, PICTURE_CHANNELS, TEXT_ENCODERS, TextEncoder, TextModel,
    rows_of, tensor_types,
};
use crate::error::{Error, Result};
use crate::format::meta::{Conditioning, LayerMeta, PipelineMeta, TextEncoderMeta, TextLength, TextMeta};
use crate::format::{Packed, TensorKind};
use crate::program::shape::{Type, infer};
use crate::program::{Dim, Dims, InputKind, Program, Role, describe_attention};
use crate::text::Tokenizer;
use std::collections::BTreeMap;
use std::fmt::Display;

/// Most tokens of a text; what encoders read lies far below.
const MAX_TOKENS: usize = 1 << 15;
/// Most channels of latents.
const MAX_CHANNELS: usize = 1 << 10;
/// Most columns of features of a text, and of its vector.
const MAX_FEATURES: usize = 1 << 16;
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
    let latents = latent_space(p)?;
    let model = Model {
        packed,
        latents,
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

fn latent_space(p: &PipelineMeta) -> Result<LatentSpace> {
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
    Ok(LatentSpace { channels, size, multiple, pixels })
}

/// The types of all values of `program` for one sample of `size`, with texts of `tokens`.
fn types<D: AsRef<[u8]>>(
    packed: &Packed<D>,
    program: &Program,
    [height, width]: [usize; 2],
    tokens: usize,
) -> Result<Vec<Type>> {
    infer(program, &tensor_types(packed), &Dims { batch: 1, conditions: 1, height, width, tokens })
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

fn text_model<'m, D: AsRef<[u8]>>(packed: &'m Packed<D>, meta: &'m TextMeta) -> Result<TextModel<'m>> {
    let n = meta.encoders.len();
    if !(1..=TEXT_ENCODERS.len()).contains(&n) {
        return wrong("encoders", format!("1 to {} text encoders", TEXT_ENCODERS.len()), n);
    }
    let pairs = meta.encoders.iter().zip(TEXT_ENCODERS);
    let encoders = pairs.map(|(meta, role)| text_encoder(packed, meta, role)).collect::<Result<Vec<_>>>()?;
    if let Some(role) = TEXT_ENCODERS.into_iter().skip(n).find(|&role| has(packed, role)) {
        return wrong("encoders", format!("an entry for the {}", role.name()), "none");
    }
    if let Some(other) = encoders.iter().find(|e| e.encodes != encoders[0].encodes) {
        return wrong("encoders", "programs of all text encoders, or of none", format!("no {}", other.role.name()));
    }
    if meta.zero_negative && encoders.iter().any(|e| e.length != TextLength::Padded) {
        return wrong("zero_negative", "false where texts are not padded", true);
    }
    let lengths = packed.program(Role::Denoiser)?.input(InputKind::Lengths).is_some();
    Ok(TextModel { encoders, zero_negative: meta.zero_negative, denoiser: &meta.denoiser, lengths })
}

fn text_encoder<'m, D: AsRef<[u8]>>(
    packed: &'m Packed<D>,
    meta: &'m TextEncoderMeta,
    role: Role,
) -> Result<TextEncoder<'m>> {
    let tokens = number("tokens", meta.tokens, meta.marks() + 1, MAX_TOKENS)?;
    let features = number("features", meta.features, 1, MAX_FEATURES)?;
    let pooled = number("pooled", meta.pooled, 0, MAX_FEATURES)?;
    let encodes = has(packed, role);
    if encodes {
        encoder_program(packed, meta, role, [tokens, features, pooled])?;
    }
    let tokenizer = match meta.tokenizer.as_str() {
        "" => None,
        name if !encodes => {
            return wrong("tokenizer", format!("none, as there is no {}", role.name()), format!("{name:?}"));
        }
        name => match packed.bytes(name) {
            Some(json) => Some(json),
            None => return wrong("tokenizer", "a file of bytes in DATA", format!("{name:?}")),
        },
    };
    Ok(TextEncoder { role, encodes, tokens, length: meta.length, features, pooled, tokenizer, special: meta })
}

/// Proves that a text encoder's program reads and makes what META says.
fn encoder_program<D: AsRef<[u8]>>(
    packed: &Packed<D>,
    meta: &TextEncoderMeta,
    role: Role,
    [tokens, features, pooled]: [usize; 3],
) -> Result<()> {
    let program = packed.program(role)?;
    let values = types(packed, program, [1, 1], tokens)?;
    let input = width(program, &values, InputKind::Tokens).unwrap_or(0);
    let output = &values[program.output.0 as usize];
    let masked = program.input(InputKind::Lengths).is_some();
    let others = program.inputs.len() != 1 + usize::from(masked);
    if others || [input, output.rows(), output.cols()] != [tokens, tokens, features + pooled] {
        let expected = format!("{input} tokens to {} rows of {}, as its program has", output.rows(), output.cols());
        return wrong(role.name(), expected, format!("{tokens} tokens to features {features} + {pooled}"));
    }
    let axis = program.inputs.iter().find(|input| input.kind == InputKind::Tokens).map(|input| input.dims[1]);
    let told = (meta.length, masked, axis == Some(Dim::Tokens));
    if !matches!(told, (TextLength::Padded, false, _) | (TextLength::Masked, true, _) | (TextLength::Own, false, true))
    {
        let reads = if masked { "lengths" } else { "no lengths" };
        let expected = format!("one that the {} can have, which reads {reads}", role.name());
        return wrong("length", expected, format!("{:?}", meta.length));
    }
    let rows = rows_of(packed, program, InputKind::Tokens);
    let mut marks = meta.begin.into_iter().chain([meta.end, meta.pad]);
    match marks.find(|&token| token as usize >= rows) {
        Some(token) => wrong("begin, end and pad", format!("tokens below {rows}"), token),
        None => Ok(()),
    }
}

/// Proves that tokenizers can be read and make no token that their encoder has no row for.
pub(super) fn tokenizers<D: AsRef<[u8]>>(model: &Model<'_, D>) -> Result<()> {
    for encoder in model.text.iter().flat_map(|text| &text.encoders) {
        let Some(json) = encoder.tokenizer else { continue };
        let vocabulary = Tokenizer::new(json)?.vocabulary();
        let rows = rows_of(model.packed, model.packed.program(encoder.role)?, InputKind::Tokens);
        if vocabulary > rows {
            let expected = format!("at most {rows} tokens, the rows of the {}'s table", encoder.role.name());
            return wrong("tokenizer", expected, vocabulary);
        }
    }
    Ok(())
}

/// Proves that the denoiser of `role` works on the model's latents and reads what META says.
fn denoiser<D: AsRef<[u8]>>(model: &Model<'_, D>, role: Role) -> Result<()> {
    let program = model.packed.program(role)?;
    let LatentSpace { channels, size: [height, width_], .. } = model.latents;
    let tokens = model.text.as_ref().map_or(1, TextModel::tokens);
    let values = types(model.packed, program, model.latents.size, tokens)?;
    let sample = width(program, &values, InputKind::Sample).unwrap_or(0);
    if sample != channels {
        return wrong("latent_channels", format!("{sample}, as the {} reads", role.name()), channels);
    }
    let output = values[program.output.0 as usize];
    let fits = matches!(output.dims()[..], [1, h, w, c] if [h, w] == [height, width_] && c >= channels);
    if !fits {
        let expected = format!("latents of {:?}, as the {} makes", output.dims(), role.name());
        return wrong("latent_channels", expected, format!("[1, {height}, {width_}, {channels}]"));
    }
    if program.input(InputKind::Tokens).is_some() {
        return wrong(role.name(), "a program that reads latents", "one that reads tokens");
    }
    if role == Role::Refiner && program.input(InputKind::ClassLabels).is_some() {
        return wrong("refiner", "a program that reads prompts", "one that reads class labels");
    }
    conditioning(model, role, program, &values)
}

/// Proves that features, vectors and numbers of prompts are as wide as the denoiser's inputs for them.
fn conditioning<D: AsRef<[u8]>>(model: &Model<'_, D>, role: Role, program: &Program, types: &[Type]) -> Result<()> {
    let kinds = [InputKind::Context, InputKind::Pooled, InputKind::Sizes, InputKind::Context2];
    let reads = kinds.map(|kind| width(program, types, kind));
    let Some(Conditioning { context, pooled, sizes, context_2 }) = model.conditioning(role) else {
        let lengths = [InputKind::Lengths, InputKind::Lengths2].map(|kind| program.input(kind));
        return match (reads, lengths) {
            ([None, None, None, None], [None, None]) => Ok(()),
            _ => wrong("text", format!("what the {} reads of prompts", role.name()), "none"),
        };
    };
    let Some(text) = &model.text else {
        return wrong("text", format!("text encoders, which the {} reads", role.name()), "none");
    };
    if model.classes.is_some() {
        return wrong("classes", "0 in a model that reads prompts", "some");
    }
    let encoder = |index: u32| match text.encoders.get(index as usize) {
        Some(encoder) => Ok(encoder),
        None => wrong("context and pooled", format!("text encoders below {}", text.encoders.len()), index),
    };
    let read = context.iter().map(|&i| encoder(i)).collect::<Result<Vec<_>>>()?;
    told_lengths(role, program, text, &read)?;
    let features = read.iter().map(|encoder| encoder.features);
    let vector = pooled.map(|i| encoder(i).map(|e| e.pooled)).transpose()?;
    let some = |n: usize| (n > 0).then_some(n);
    let second = context_2.map(encoder).transpose()?;
    second_context(role, program, types, second)?;
    let told = [some(features.sum()), vector, some(sizes.len()), second.map(|encoder| encoder.features)];
    for ((field, told), reads) in ["context", "pooled", "sizes", "context_2"].into_iter().zip(told).zip(reads) {
        if told != reads {
            let show = |n: Option<usize>| n.map_or("none".into(), |n| format!("{n} columns"));
            let expected = format!("{}, as the {} reads", show(reads), role.name());
            return wrong(field, expected, show(told));
        }
    }
    Ok(())
}

/// Proves that the second context has as many tokens as its text encoder, which fills texts up and tells how many count.
fn second_context(role: Role, program: &Program, types: &[Type], encoder: Option<&TextEncoder>) -> Result<()> {
    let tokens = program.input(InputKind::Context2).map(|value| types[value.0 as usize].rows_per_sample());
    let told = program.input(InputKind::Lengths2).is_some();
    let has = encoder.map(|encoder| encoder.tokens);
    if tokens != has || told != tokens.is_some() {
        let show = |n: Option<usize>| n.map_or("none".into(), |n| format!("{n} tokens"));
        let lengths = if told { "" } else { " and no lengths" };
        return wrong("context_2", format!("{}{lengths}, as the {} reads", show(tokens), role.name()), show(has));
    }
    match encoder {
        Some(encoder) if encoder.length != TextLength::Masked => {
            wrong("length", "masked in a second context", format!("{:?}", encoder.length))
        }
        _ => Ok(()),
    }
}

/// Proves that features of `encoders` can lie side by side, and that the denoiser is told how many rows count if not all do.
fn told_lengths(role: Role, program: &Program, text: &TextModel, encoders: &[&TextEncoder]) -> Result<()> {
    let shape = |encoder: &TextEncoder| (encoder.tokens, encoder.length);
    if let Some(other) = encoders.iter().find(|encoder| shape(encoder) != shape(encoders[0])) {
        let expected = format!("{}, {:?}, in every text encoder", encoders[0].tokens, encoders[0].length);
        return wrong("tokens", expected, format!("{}, {:?}", other.tokens, other.length));
    }
    let context = program.input(InputKind::Context).map(|value| &program.inputs[value.0 as usize].dims[..]);
    match (context, encoders.first()) {
        (Some(&[_, Dim::Fixed(t), _]), Some(first)) if t as usize != first.tokens => {
            let expected = format!("{t}, as the {} reads", role.name());
            return wrong("tokens", expected, first.tokens);
        }
        _ => {}
    }
    let told = program.input(InputKind::Lengths).is_some();
    if told != text.lengths {
        let expected = if text.lengths { "one that reads lengths" } else { "one that reads none" };
        return wrong(role.name(), format!("{expected}, as the denoiser"), "another");
    }
    match encoders.iter().find(|encoder| encoder.length != TextLength::Padded) {
        Some(encoder) if !told => {
            let expected = format!("padded, as the {} is not told how long prompts are", role.name());
            wrong("length", expected, format!("{:?}", encoder.length))
        }
        _ => Ok(()),
    }
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
    let values = types(model.packed, program, model.latents.size, 1)?;
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
    let values = types(model.packed, program, size.map(|n| n * pixels), 1)?;
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
        let outputs = types(model.packed, program, model.latents.size, tokens)?[program.output.0 as usize].cols();
        if table.learned() && outputs != 2 * model.latents.channels {
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
