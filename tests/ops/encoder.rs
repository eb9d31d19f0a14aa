//! The ops of T5 against transformers: buckets of distances, and a whole encoder on padded texts. The fixture and its maker are
//! `tests/fixtures/encoder.safetensors` and `make_encoder.py`.

use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{
    Act, Attention, Dim, Dims, Embedding, InputKind, LayerNorm, Linear, Multiply, Op, RelativeBias, Role, Value,
};
use common::fixture::Fixture;
use common::{Build, inputs, run_on};
use std::path::Path;

const HEADS: u32 = 3;
const TOKENS: u32 = 37;

fn fixture() -> Fixture {
    Fixture::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/encoder.safetensors")))
}

#[test]
fn buckets_of_distances_are_those_of_transformers() {
    for (buckets, max_distance) in [(32, 128), (4, 2), (8, 20), (20, 1000), (64, 65), (64, 4096)] {
        let (want, _) = fixture().get(&format!("buckets.{buckets}.{max_distance}"));
        let tokens = want.len().div_ceil(2);
        let mut b = Build::with(1, &[(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(tokens as u32)])]);
        // Each bucket's number, of the second head a hundred more.
        let numbers: Vec<f32> = (0..buckets).flat_map(|bucket| [bucket as f32, bucket as f32 + 100.0]).collect();
        let table = b.f32(&[buckets as usize, 2], &numbers);
        b.op(Op::RelativeBias(RelativeBias { x: b.input(InputKind::Tokens), table, buckets, max_distance }));
        let mut inputs = inputs([1, 1, 1, 1], || 0.0);
        inputs.tokens = vec![0; tokens];
        let got = run_on(&Cpu::best(), &b.open([1, 1]), &inputs).unwrap();
        for (i, got) in got.into_iter().enumerate() {
            let (head, query, key) = (i / tokens / tokens, i / tokens % tokens, i % tokens);
            let wanted = want[tokens - 1 + key - query] + 100.0 * head as f32;
            assert_eq!(got, wanted, "{buckets} to {max_distance}: query {query}, key {key}");
        }
    }
}

/// The fixture's encoder, as a program.
fn encoder(fixture: &Fixture) -> Build {
    let mut b = Build::of(vec![
        (InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(TOKENS)]),
        (InputKind::Lengths, vec![Dim::Batch]),
    ]);
    b.program.role = Role::TextEncoder;
    let weight = |b: &mut Build, name: &str| {
        let (data, dims) = fixture.get(&format!("model/{name}.weight"));
        b.f32(&dims, &data)
    };
    let linear = |b: &mut Build, x: Value, name: &str, act: Act, residual: Option<Value>| {
        let weight = weight(b, name);
        b.op(Op::Linear(Linear { x, weight, bias: None, act, gate: None, residual }))
    };
    let norm = |b: &mut Build, x: Value, name: &str| {
        let weight = Some(weight(b, name));
        b.op(Op::LayerNorm(LayerNorm { x, weight, eps: 1e-6, rms: true, ..LayerNorm::default() }))
    };
    let index = b.input(InputKind::Tokens);
    let lengths = Some(b.input(InputKind::Lengths));
    let table = weight(&mut b, "shared");
    let mut x = b.op(Op::Embedding(Embedding { index, table }));
    let table = weight(&mut b, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias");
    let bias = Some(b.op(Op::RelativeBias(RelativeBias { x, table, buckets: 32, max_distance: 128 })));
    for block in 0..2 {
        let (attention, dense) = (format!("encoder.block.{block}.layer.0"), format!("encoder.block.{block}.layer.1"));
        let y = norm(&mut b, x, &format!("{attention}.layer_norm"));
        let [q, k, v] = ["q", "k", "v"]
            .map(|which| linear(&mut b, y, &format!("{attention}.SelfAttention.{which}"), Act::None, None));
        let attend = Attention { q, k, v, heads: HEADS, scale: 1.0, bias, lengths, ..Attention::default() };
        let y = b.op(Op::Attention(attend));
        x = linear(&mut b, y, &format!("{attention}.SelfAttention.o"), Act::None, Some(x));
        let y = norm(&mut b, x, &format!("{dense}.layer_norm"));
        let gate = linear(&mut b, y, &format!("{dense}.DenseReluDense.wi_0"), Act::GeluTanh, None);
        let value = linear(&mut b, y, &format!("{dense}.DenseReluDense.wi_1"), Act::None, None);
        let y = b.op(Op::Multiply(Multiply { a: gate, b: value }));
        x = linear(&mut b, y, &format!("{dense}.DenseReluDense.wo"), Act::None, Some(x));
    }
    norm(&mut b, x, "encoder.final_layer_norm");
    b
}

fn numbers(fixture: &Fixture, key: &str) -> Vec<u32> {
    fixture.get(key).0.into_iter().map(|v| v as u32).collect()
}

#[test]
fn an_encoder_on_padded_texts_is_that_of_transformers() {
    let fixture = fixture();
    let (want, dims) = fixture.get("output");
    let model = encoder(&fixture).open([1, 1]);
    for tier in Tier::available() {
        let cpu = Cpu::new(tier);
        let dims = Dims { batch: dims[0], conditions: 1, height: 1, width: 1, tokens: 1, ..Dims::ONE };
        let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::new(&cpu, &model, Role::TextEncoder, binding).unwrap();
        executor.set_tokens(&numbers(&fixture, "tokens")).unwrap();
        let lengths = numbers(&fixture, "lengths");
        executor.set_prompt(&PromptInputs { lengths: Some(&lengths), ..Default::default() }).unwrap();
        executor.call(0).unwrap();
        let mut got = vec![f32::NAN; want.len()];
        executor.read_output(&mut got).unwrap();
        let square = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let off = square(&mut got.iter().zip(&want).map(|(got, want)| f64::from(got - want)));
        let off = off / square(&mut want.iter().map(|&v| f64::from(v)));
        assert!(off < 1e-5, "{}: {off:e}", tier.name());
        println!("{}: {off:e}", tier.name());

        let long = [37, 38, 20];
        let refused = executor.set_prompt(&PromptInputs { lengths: Some(&long), ..Default::default() });
        assert_eq!(refused.unwrap_err().to_string(), "lengths: expected at most 37 tokens, got 38");
        let refused = executor.set_prompt(&PromptInputs::default());
        assert_eq!(refused.unwrap_err().to_string(), "lengths: expected 3, got none");
    }
}
