//! Texts: encoders, their tokenizers, and what denoisers read of prompts.

use super::{has, number, types, width, wrong};
use crate::error::Result;
use crate::format::Packed;
use crate::format::meta::{Conditioning, TextEncoderMeta, TextLength, TextMeta};
use crate::model::{Model, TEXT_ENCODERS, TextEncoder, TextModel, f32s, rows_of};
use crate::program::shape::Type;
use crate::program::{Dim, Dims, InputKind, Program, Role};
use crate::text::Tokenizer;

/// Most tokens of a text; what encoders read lies far below.
const MAX_TOKENS: usize = 1 << 15;
/// Most columns of features of a text, and of its vector.
const MAX_FEATURES: usize = 1 << 16;

/// The text encoders that META has, and what they make.
pub(super) fn text_model<'m, D: AsRef<[u8]>>(packed: &'m Packed<D>, meta: &'m TextMeta) -> Result<TextModel<'m>> {
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
    let null_caption = null_caption(packed, meta, &encoders)?;
    let negative_as_long = negative_as_long(packed, meta, &encoders)?;
    let (zero_negative, denoiser) = (meta.zero_negative, &meta.denoiser);
    Ok(TextModel { encoders, null_caption, zero_negative, negative_as_long, denoiser, lengths })
}

/// Proves that a text encoder whose texts have a length of their own is told how many tokens count if, and only if, texts may be
/// filled up to another's length.
fn negative_as_long<D: AsRef<[u8]>>(packed: &Packed<D>, meta: &TextMeta, encoders: &[TextEncoder]) -> Result<bool> {
    let told = |encoder: &&TextEncoder| {
        let program = packed.program(encoder.role).ok().filter(|_| encoder.length == TextLength::Own);
        program.is_some_and(|program| program.input(InputKind::Lengths).is_some())
    };
    let first = encoders.first();
    let own = encoders.len() == 1 && first.is_some_and(|encoder| encoder.length == TextLength::Own);
    let fills = own && first.is_some_and(|encoder| !encoder.encodes || told(&encoder));
    match meta.negative_as_long {
        true if !fills || meta.null_caption.is_some() => {
            let expected = "false, but beside one text encoder of texts at their own length that reads lengths";
            wrong("negative_as_long", expected, true)
        }
        false if encoders.iter().any(|encoder| told(&encoder)) => {
            wrong("negative_as_long", "true, as a text encoder reads how many tokens of a text count", false)
        }
        asked => Ok(asked),
    }
}

/// Proves that the caption for none is one that the only text encoder could have made.
fn null_caption<'m, D: AsRef<[u8]>>(
    packed: &'m Packed<D>,
    meta: &'m TextMeta,
    encoders: &[TextEncoder<'m>],
) -> Result<Option<&'m [u8]>> {
    let Some(name) = &meta.null_caption else { return Ok(None) };
    let [TextEncoder { tokens, features, pooled: 0, length: TextLength::Own, .. }] = encoders else {
        return wrong("null_caption", "none, but beside one text encoder of texts at their own length", name);
    };
    if meta.zero_negative {
        return wrong("null_caption", "none where zeros stand for no prompt", name);
    }
    let Some(bytes) = packed.bytes(name) else {
        return wrong("null_caption", "a file of bytes in DATA", format!("{name:?}"));
    };
    let row = 4 * features;
    if !bytes.len().is_multiple_of(row) || bytes.len() / row < *tokens {
        return wrong(
            "null_caption",
            format!("at least {tokens} rows of {features} f32"),
            format!("{} bytes", bytes.len()),
        );
    }
    match f32s(bytes).find(|value| !value.is_finite()) {
        None => Ok(Some(bytes)),
        Some(value) => wrong("null_caption", "finite numbers", value),
    }
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
    let values = types(packed, program, Dims { tokens, ..Dims::ONE })?;
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
    if !matches!(told, (TextLength::Padded, false, _) | (TextLength::Masked, true, _) | (TextLength::Own, _, true)) {
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
pub(in crate::model) fn tokenizers<D: AsRef<[u8]>>(model: &Model<'_, D>) -> Result<()> {
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

/// Proves that features, vectors and numbers of prompts are as wide as the denoiser's inputs for them.
pub(super) fn conditioning<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    role: Role,
    program: &Program,
    types: &[Type],
) -> Result<()> {
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
