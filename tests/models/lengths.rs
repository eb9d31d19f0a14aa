//! Prompts of different lengths: encoders that read texts at their own length, and such whose padding is masked.
//!
//! The model is made by hand, twice of the same weights: a text encoder of one attention, on texts of their own length or
//! filled up to nine tokens; and a denoiser of pixels that attends to its features as far as it is told. What is masked
//! counts for nothing, so both make the same pictures.

use aquatint::model::Model;
use aquatint::options::{NamedTensor, Tensors};
use aquatint::pipeline::{Embeddings, NoiseSource, Output, Prompts, Request, Session, Texts};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::format::meta::{Conditioning, SizeBin, TextEncoderMeta, TextLength, TextMeta};
use aquatint::raw::format::{Meta, Packed, TensorKind, TensorSpec, Writer};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::{
    Add, Attend, Attention, Dim, Embedding, Input, InputKind, Linear, Node, Op, Program, Role, Tensor, Value,
};
use aquatint::raw::text::{PromptStyle, SENTENCE_PIECE_PRE_TOKENIZER};
use common::fixture::relative;
use fastrand::Rng;
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::IntoBytes;

/// Tokens: padding, end, unknown, a space, and letters with and without one.
const PIECES: [&str; 9] = ["<pad>", "</s>", "<unk>", "▁", "a", "b", "c", "▁a", "▁cab"];
/// Rows of the table: more than there are pieces, as in published models.
const ROWS: usize = 12;
/// Most tokens of a text.
const TOKENS: usize = 9;
const FEATURES: usize = 6;

fn tokenizer() -> Vec<u8> {
    let pieces: Vec<Json> =
        PIECES.iter().enumerate().map(|(i, piece)| json!([piece, -4.0 / (i as f64 + 1.0)])).collect();
    let pre_tokenizer: Json = serde_json::from_str(SENTENCE_PIECE_PRE_TOKENIZER).expect("JSON");
    let model = json!({ "type": "Unigram", "unk_id": 2, "byte_fallback": false, "vocab": pieces });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model,
    });
    tokenizer.to_string().into_bytes()
}

/// A program on its way into a file, and the weights of all of them.
struct Weights {
    rng: Rng,
    stored: Vec<(TensorSpec, Vec<f32>)>,
}

impl Weights {
    fn random(&mut self, dims: [usize; 2]) -> Tensor {
        let size = 1.0 / (dims[1] as f32).sqrt();
        let values: Vec<f32> = common::normals(&mut self.rng, dims[0] * dims[1]).iter().map(|v| v * size).collect();
        let name = format!("tensor.{}", self.stored.len());
        self.stored.push((TensorSpec { name, dims: dims.to_vec(), kind: TensorKind::F32 }, values));
        Tensor(self.stored.len() as u32 - 1)
    }
}

fn program(role: Role, inputs: &[(InputKind, &[Dim])]) -> Program {
    let inputs = inputs.iter().map(|&(kind, dims)| Input { kind, dims: dims.to_vec() }).collect();
    Program { role, inputs, nodes: Vec::new(), output: Value(0), phases: Default::default() }
}

fn node(program: &mut Program, op: Op) -> Value {
    let path = format!("node.{}", program.nodes.len());
    program.nodes.push(Node { op, path, wide: false });
    program.output = program.value_of(program.nodes.len() - 1);
    program.output
}

fn linear(program: &mut Program, weights: &mut Weights, x: Value, dims: [usize; 2]) -> Value {
    let weight = weights.random(dims);
    node(program, Op::Linear(Linear { x, weight, bias: None, act: Default::default(), gate: None, residual: None }))
}

fn encoder(weights: &mut Weights, length: TextLength) -> Program {
    let tokens = if length == TextLength::Own { Dim::Tokens } else { Dim::Fixed(TOKENS as u32) };
    let mut inputs: Vec<(InputKind, &[Dim])> = vec![(InputKind::Tokens, &[Dim::Batch, Dim::Fixed(0)])];
    let axes = [Dim::Batch, tokens];
    inputs[0].1 = &axes;
    if length == TextLength::Masked {
        inputs.push((InputKind::Lengths, &[Dim::Batch]));
    }
    let p = &mut program(Role::TextEncoder, &inputs);
    let table = weights.random([ROWS, FEATURES]);
    let x = node(p, Op::Embedding(Embedding { index: Value(0), table }));
    let [q, k, v] = [0; 3].map(|_| linear(p, weights, x, [FEATURES, FEATURES]));
    let lengths = p.input(InputKind::Lengths);
    let y = node(p, Op::Attention(Attention { q, k, v, heads: 2, scale: 0.6, lengths, ..Attention::default() }));
    node(p, Op::Add(Add { a: x, b: y }));
    p.clone()
}

fn denoiser(weights: &mut Weights) -> Program {
    let p = &mut program(
        Role::Denoiser,
        &[
            (InputKind::Sample, &[Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(3)]),
            (InputKind::Context, &[Dim::Conditions, Dim::Tokens, Dim::Fixed(FEATURES as u32)]),
            (InputKind::Lengths, &[Dim::Conditions]),
        ],
    );
    let q = linear(p, weights, Value(0), [8, 3]);
    let [k, v] = [0; 2].map(|_| linear(p, weights, Value(1), [8, FEATURES]));
    let attend = Attend { per_condition: true, ..Attend::default() };
    let lengths = Some(Value(2));
    let x =
        node(p, Op::Attention(Attention { q, k, v, heads: 1, scale: 0.5, attend, lengths, ..Attention::default() }));
    linear(p, weights, x, [3, 8]);
    p.clone()
}

fn meta(length: TextLength) -> Meta {
    let encoder = TextEncoderMeta {
        tokenizer: "tokenizer/tokenizer.json".into(),
        tokens: TOKENS as u32,
        length,
        lower_case: true,
        begin: None,
        end: 1,
        pad: 0,
        features: FEATURES as u32,
        pooled: 0,
    };
    let denoiser = Conditioning { context: vec![0], context_2: None, pooled: None, sizes: Vec::new() };
    let mut meta = common::meta([4, 5]);
    let pipeline = &mut meta.pipeline;
    (pipeline.latent_channels, pipeline.pixels_per_latent) = (3, 1);
    (pipeline.classes, pipeline.null_class) = (0, 0);
    (pipeline.steps, pipeline.guidance_scale) = (3, 2.5);
    pipeline.text = Some(TextMeta {
        encoders: vec![encoder],
        zero_negative: false,
        null_caption: None,
        negative_as_long: false,
        denoiser,
    });
    meta
}

/// The model, with or without its text encoder; `change` puts a fault into META.
fn packed(length: TextLength, whole: bool, change: impl FnOnce(&mut Meta)) -> aquatint::Result<Packed<FileBytes>> {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("lengths-{}-{}.aqt", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut weights = Weights { rng: Rng::with_seed(5), stored: Vec::new() };
    let mut programs = vec![denoiser(&mut weights)];
    let mut meta = meta(length);
    if whole {
        programs.push(encoder(&mut weights, length));
    } else {
        meta.pipeline.text.as_mut().unwrap().encoders[0].tokenizer.clear();
    }
    change(&mut meta);
    let mut writer = Writer::create(&path)?;
    for (spec, values) in &weights.stored {
        writer.tensor(spec.clone(), values.as_bytes())?;
    }
    writer.bytes("tokenizer/tokenizer.json", &tokenizer())?;
    writer.finish(&programs, &meta)?;
    let packed = Packed::new(aquatint::raw::mmap::open(&path)?);
    std::fs::remove_file(&path).unwrap();
    packed
}

fn texts(prompts: &[&str], negatives: &[&str]) -> Prompts {
    let negatives = negatives.iter().map(|text| Some((*text).to_owned())).collect();
    let prompts = prompts.iter().map(|text| (*text).to_owned()).collect();
    Prompts::Texts(Texts { prompts, negatives, style: PromptStyle::Weighted })
}

fn run(packed: &Packed<FileBytes>, prompts: Prompts, batch_size: usize) -> Output {
    let model = Model::verify(packed).unwrap();
    let cpu = Cpu::new(Scalar);
    let mut request = Request::new(&model, prompts);
    (request.batch_size, request.noise) = (batch_size, NoiseSource::Fast);
    Session::new(&model, &cpu).run(request).unwrap()
}

fn embeddings(output: &Output) -> &Embeddings {
    let Prompts::Embeddings(embeddings) = &output.prompts else { panic!("features") };
    embeddings
}

const PROMPTS: [&str; 3] = ["a", "cab ab", "CAB a (b:1.3) BREAK c"];

#[test]
fn a_text_of_its_own_length_is_one_whose_padding_is_masked() {
    let [own, masked] = [TextLength::Own, TextLength::Masked].map(|length| packed(length, true, |_| ()).unwrap());
    let [own, masked] = [&own, &masked].map(|packed| run(packed, texts(&PROMPTS, &["", "b", ""]), 3));
    let rows = |output: &Output| {
        let encoders = embeddings(output).prompts.iter().map(|prompt| &prompt.encoders[0]);
        encoders.map(|e| [e.tokens, e.length]).collect::<Vec<_>>()
    };
    // With its end: "▁a"; "▁cab", "▁a", "b"; and so on. An empty text is its end alone.
    assert_eq!(rows(&own), [[2, 2], [1, 1], [4, 4], [3, 3], [7, 7]]);
    assert_eq!(rows(&masked), [[9, 2], [9, 1], [9, 4], [9, 3], [9, 7]]);
    for (a, b) in embeddings(&own).prompts.iter().zip(&embeddings(&masked).prompts) {
        let (a, b) = (&a.encoders[0], &b.encoders[0]);
        assert!(relative(&a.features, &b.features[..a.features.len()]) < 1e-5);
    }
    let error = relative(&own.latents, &masked.latents);
    assert!(error < 1e-5, "{error}");
    assert!(own.latents.iter().any(|v| v.abs() > 0.1));
}

#[test]
fn an_image_is_the_same_alone_and_beside_longer_prompts() {
    for length in [TextLength::Own, TextLength::Masked] {
        let packed = packed(length, true, |_| ()).unwrap();
        let together = run(&packed, texts(&PROMPTS, &["b a"]), 3);
        assert!(run(&packed, texts(&PROMPTS, &["b a"]), 1).latents == together.latents, "{length:?}");
        // Noise is that of an image's own stream.
        let first = run(&packed, texts(&PROMPTS[..1], &["b a"]), 1).latents;
        assert!(first == together.latents[..first.len()], "{length:?}");
    }
}

/// Features written and read again take the place of texts, to the bit, and also of a file without the encoder.
#[test]
fn features_make_the_images_of_texts() {
    for length in [TextLength::Own, TextLength::Masked] {
        let [whole, without] = [true, false].map(|whole| packed(length, whole, |_| ()).unwrap());
        let made = run(&whole, texts(&PROMPTS, &["b a"]), 2);
        let tensors = NamedTensor::of_prompts(&made.prompts);
        let names: Vec<_> = tensors.iter().map(|t| (t.name, &t.dims[..])).collect();
        let rows = if length == TextLength::Own { 7 } else { 9 };
        let negative = if length == TextLength::Own { 4 } else { 9 };
        assert_eq!(
            names,
            [
                ("prompt_embeds", &[3, rows, FEATURES][..]),
                ("prompt_mask", &[3, rows]),
                ("negative_prompt_embeds", &[3, negative, FEATURES]),
                ("negative_prompt_mask", &[3, negative]),
            ]
        );
        let read = |tensors: &[NamedTensor], packed: &Packed<FileBytes>| {
            let views = tensors.iter().map(|t| {
                let view =
                    safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.dims.clone(), t.values.as_bytes());
                (t.name, view.unwrap())
            });
            let bytes = safetensors::serialize(views, None).unwrap();
            Tensors::new("given", &bytes)?.prompts(&Model::new(packed)?, true)
        };
        for packed in [&whole, &without] {
            let prompts = read(&tensors, packed).unwrap().unwrap();
            assert!(run(packed, prompts, 2).latents == made.latents, "{length:?}");
        }
        // A mask may leave out rows anywhere of texts that have a length of their own, and not where they are masked.
        let mut holes = tensors.clone();
        holes[1].values[0] = 0.0;
        holes[1].values[1] = 1.0;
        match length {
            TextLength::Own => {
                let Some(Prompts::Embeddings(found)) = read(&holes, &whole).unwrap() else { panic!("features") };
                let first = &found.prompts[0].encoders[0];
                assert_eq!((first.tokens, &first.features[..]), (1, &tensors[0].values[FEATURES..2 * FEATURES]));
            }
            _ => {
                let message = read(&holes, &whole).unwrap_err().to_string();
                assert!(message.contains("ones before zeros"), "{message}");
            }
        }
        type Fault<'a> = (usize, &'a dyn Fn(&mut NamedTensor), &'a str);
        let faults: [Fault<'_>; 4] = [
            (1, &|t| t.values[3] = 0.5, "prompt_mask: expected 1 where a token counts, else 0, got 0.5"),
            (1, &|t| t.values.fill(0.0), "prompt_mask: expected at least one token of each prompt, got none in row 0"),
            (1, &|t| (t.dims[1], t.values) = (1, vec![1.0; 3]), "prompt_mask: expected [3, "),
            (0, &|t| (t.dims[2], t.values) = (1, vec![1.0; 3 * t.dims[1]]), "prompt_embeds: expected [n, tokens, 6"),
        ];
        for (index, fault, expected) in faults {
            let mut tensors = tensors.clone();
            fault(&mut tensors[index]);
            let message = read(&tensors, &whole).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}

#[test]
fn long_texts_are_cut_off_and_told() {
    let packed = packed(TextLength::Own, true, |_| ()).unwrap();
    let long = run(&packed, texts(&["A a a a (a a a a a b:1.2) c"], &[]), 1);
    assert_eq!(embeddings(&long).prompts[0].encoders[0].tokens, TOKENS);
    assert_eq!(long.cut, ["a b c"]);
}

#[test]
fn a_file_without_text_encoder_says_what_to_do() {
    let packed = packed(TextLength::Own, false, |_| ()).unwrap();
    let model = Model::verify(&packed).unwrap();
    let cpu = Cpu::new(Scalar);
    let message = Session::new(&model, &cpu).plans(&Request::new(&model, texts(&["a"], &[]))).unwrap_err().to_string();
    assert!(message.contains("--inputs FILE") && message.contains("aquatint encode"), "{message}");
    Session::new(&model, &cpu).plans(&Request::new(&model, Prompts::blank(&model, 2))).unwrap();
}

/// Of texts of their own lengths, no arena is kept.
#[test]
fn text_encoders_are_let_go() {
    let packed = packed(TextLength::Own, true, |_| ()).unwrap();
    let model = Model::verify(&packed).unwrap();
    let cpu = Cpu::new(Scalar);
    let mut session = Session::new(&model, &cpu);
    let request = Request::new(&model, texts(&PROMPTS, &[]));
    let plans = session.plans(&request).unwrap();
    assert_eq!(plans.texts[0].binding.dims.tokens, 7, "the longest text's");
    session.run(request.clone()).unwrap();
    // Four lengths of texts, the empty one's among them, and the loop, which alone is kept.
    assert_eq!(session.binds(), 5);
    session.run(request).unwrap();
    assert_eq!(session.binds(), 9);
}

#[test]
fn faults_of_meta_are_named() {
    let refused = |length, change: fn(&mut TextMeta), expected: &str| {
        let packed = packed(length, true, |meta| change(meta.pipeline.text.as_mut().unwrap()));
        let message = packed.and_then(|packed| Model::verify(&packed).map(|_| ())).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.len() < 300, "{message}");
    };
    let (own, masked) = (TextLength::Own, TextLength::Masked);
    refused(own, |t| t.encoders[0].length = TextLength::Masked, "length: expected one that the text encoder can have");
    refused(masked, |t| t.encoders[0].length = TextLength::Own, "length: expected one that the text encoder can have");
    refused(masked, |t| t.encoders[0].length = TextLength::Padded, "length: expected one that");
    refused(masked, |t| t.encoders[0].tokens = 8, "text encoder: expected 9 tokens");
    refused(own, |t| t.encoders[0].tokens = 1, "tokens: expected 2 to ");
    refused(own, |t| t.encoders[0].end = 12, "begin, end and pad: expected tokens below 12, got 12");
    refused(own, |t| t.encoders[0].begin = Some(12), "begin, end and pad");
    refused(own, |t| t.zero_negative = true, "zero_negative: expected false where texts are not padded");
    refused(own, |t| t.encoders[0].features = 5, "text encoder: expected");
    refused(own, |t| t.negative_as_long = true, "negative_as_long: expected false, but beside one text encoder");
    for (ratio, size, expected) in [
        (0.0, [8, 8], "size_bins: expected positive ratios, got 0"),
        (1.0, [0, 8], "size_bins: expected 1 to 16384, got 0"),
    ] {
        let packed = packed(own, true, |meta| meta.pipeline.size_bins = vec![SizeBin { ratio, size }]);
        let message = packed.and_then(|packed| Model::verify(&packed).map(|_| ())).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}
