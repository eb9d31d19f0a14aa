//! The CUDA kernels of attention in the emulator: every size of head, tails of every tile, and what the ops do not use
//! yet.

use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::*;
use aquatint::raw::backend::cuda::MODULES;
use common::normals;
use common::one_op::{ELEMENTS, Space, close, cuda, rounded};
use fastrand::Rng;
use half::f16;
use zerocopy::IntoBytes;

/// Softmax attention in f64; `bias` is (heads, queries, keys).
struct Attention<'a> {
    sizes: [usize; 5],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    scale: f32,
    causal: bool,
    lengths: Option<&'a [u32]>,
    bias: Option<&'a [f32]>,
}

impl Attention<'_> {
    fn oracle(&self) -> Vec<f64> {
        let [samples, heads, e, queries, keys] = self.sizes;
        let d = heads * e;
        let mut out = vec![0.0; samples * queries * d];
        for i in 0..samples * queries * heads {
            let (sample, query, head) = (i / heads / queries, i / heads % queries, i % heads);
            let mut seen = self.lengths.map_or(keys, |l| keys.min(l[sample] as usize));
            if self.causal {
                seen = seen.min(query + 1);
            }
            let row = |x: &[f32], row: usize| x[row * d + head * e..][..e].to_vec();
            let q = row(self.q, sample * queries + query);
            let score = |key: usize| {
                let k = row(self.k, sample * keys + key);
                let dot: f64 = q.iter().zip(&k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let bias = self.bias.map_or(0.0, |b| b[(head * queries + query) * keys + key]);
                dot * f64::from(self.scale) + f64::from(bias)
            };
            let scores: Vec<f64> = (0..seen).map(score).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate() {
                let v = row(self.v, sample * keys + key);
                for (c, v) in v.iter().enumerate() {
                    out[(sample * queries + query) * d + head * e + c] += weight / total * f64::from(*v);
                }
            }
        }
        out
    }
}

/// Samples, heads, features, queries, keys.
const ATTENTIONS: [[usize; 5]; 16] = [
    [1, 1, 4, 1, 1],
    [2, 2, 5, 2, 2],
    [3, 3, 16, 17, 17],
    [1, 2, 24, 70, 65],
    [1, 2, 40, 64, 129],
    [2, 1, 48, 3, 200],
    [1, 2, 64, 65, 64],
    [1, 2, 72, 80, 97],
    [1, 1, 80, 33, 32],
    [2, 1, 96, 5, 70],
    [1, 2, 100, 9, 40],
    [1, 1, 128, 66, 63],
    [2, 1, 160, 20, 77],
    [1, 2, 161, 4, 9],
    [1, 1, 512, 70, 67],
    [1, 1, 960, 2, 3],
];

#[test]
fn attention_is_close() {
    let rng = &mut Rng::with_seed(5);
    for sizes @ [samples, heads, e, queries, keys] in ATTENTIONS {
        for element in ELEMENTS {
            let d = heads * e;
            let scale = 1.0 / (e as f32).sqrt();
            let [q_data, k_data, v_data] =
                [queries, keys, keys].map(|rows| rounded(normals(rng, samples * rows * d), element));
            let mut space = Space::default();
            let [q, k, v] = [queries, keys, keys].map(|rows| space.floats(samples * rows, d, element));
            let y = space.floats(samples * queries, d, Element::F32);
            let mut cuda = cuda(&space, &[0.0]);
            cuda.put(&q, &q_data);
            cuda.put(&k, &k_data);
            cuda.put(&v, &v_data);
            cuda.backend.attention(
                &mut cuda.arena,
                &AttentionArgs {
                    q,
                    k,
                    v,
                    y,
                    samples,
                    heads,
                    scale,
                    causal: false,
                    int8: false,
                    condition: None,
                    keys: k.rows / samples,
                    workspace: Slot::default(),
                },
            );
            let (q, k, v) = (&q_data, &k_data, &v_data);
            let want = Attention { sizes, q, k, v, scale, causal: false, lengths: None, bias: None }.oracle();
            let exact = 2e-7 * (16.0 + 4.0 * (e as f64).sqrt());
            let tolerance = if element == Element::F16 { 1.0 / 1024.0 } else { exact };
            close(&format!("attention {sizes:?} {element:?}"), &cuda.get(&y), &want, tolerance);
        }
    }
}

/// A kernel's argument struct, field by field.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u32s(mut self, v: &[u32]) -> Self {
        v.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
        self
    }

    fn floats(self, at: u64, rows: usize, cols: usize, half: bool) -> Self {
        self.u64(at).u64(0).u32s(&[rows as u32, cols as u32, u32::from(half), 0])
    }
}

/// What the ops do not use yet: masks, biases, a scale below zero. And the kernels for many queries, whose results must
/// be those of the others.
#[test]
fn attention_masks_and_biases() {
    let rng = &mut Rng::with_seed(6);
    #[allow(clippy::type_complexity)] // the columns of a table
    let cases: [([usize; 5], bool, Option<&[u32]>, bool, f32); 9] = [
        ([2, 2, 40, 70, 70], true, None, false, 0.2),
        ([3, 1, 72, 9, 50], false, Some(&[0, 33, 70]), false, 0.1),
        ([2, 2, 5, 66, 67], true, Some(&[40, 1]), true, 0.4),
        ([1, 2, 64, 130, 90], false, None, true, 0.1),
        ([2, 1, 128, 30, 33], true, Some(&[20, 33]), true, -0.1),
        ([1, 1, 80, 140, 40], false, Some(&[35]), false, 0.0),
        ([1, 1, 32, 40, 65], true, None, true, -0.3),
        ([2, 1, 200, 65, 70], true, Some(&[64, 69]), true, 0.07),
        ([2, 1, 16, 5, 7], false, Some(&[0, 0]), true, 1.0),
    ];
    for (sizes @ [samples, heads, e, queries, keys], causal, lengths, biased, scale) in cases {
        let d = heads * e;
        let [q_data, k_data, v_data] =
            [queries, keys, keys].map(|rows| rounded(normals(rng, samples * rows * d), Element::F16));
        let bias_data = normals(rng, heads * queries * keys);
        let bias = biased.then_some(&bias_data[..]);
        let (q, k, v) = (&q_data[..], &k_data[..], &v_data[..]);
        let want = Attention { sizes, q, k, v, scale, causal, lengths, bias }.oracle();

        let padded = [32, 40, 64, 72, 80, 96, 128, 160].into_iter().find(|&p| e <= p);
        let module = padded.map_or("attention_wide".to_string(), |p| format!("attention.e{p}"));
        let shared =
            padded.map_or(0, |p| 4 * if p <= 64 { 64 } else { 32 } * ((p as u32).next_multiple_of(16) + 8) * 2);
        let mut kernels = vec![("attention_f32".to_string(), "attention_f32", 32, 0)];
        kernels.push((module.clone(), if padded.is_some() { "attention_64" } else { "attention_wide" }, 64, shared));
        if padded.is_some_and(|p| p <= 80) {
            kernels.push((module, "attention_128", 128, shared));
        }
        let mut results = Vec::new();
        for (module, entry, tile, dynamic_shared) in kernels {
            let name = format!("{entry} {sizes:?} causal {causal} lengths {lengths:?} biased {biased} scale {scale}");
            let text = MODULES.iter().find(|(name, _)| *name == module).unwrap().1;
            let module = ptx_emulator::Module::parse(text).unwrap();
            let mut memory = ptx_emulator::Memory::new();
            let mut place = |bytes: &[u8]| {
                let at = memory.alloc(bytes.len());
                memory.write(at, bytes).unwrap();
                at
            };
            let halves =
                |x: &[f32]| x.iter().flat_map(|&v| f16::from_f32(v).to_bits().to_le_bytes()).collect::<Vec<u8>>();
            let words = |x: &[u32]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            let calls = place(&[0; 8]);
            let [q_at, k_at, v_at] = [q, k, v].map(|x| place(&halves(x)));
            let lengths_at = lengths.map_or(0, |l| place(&words(l)));
            let bias_at = bias.map_or(0, |b| place(b.as_bytes()));
            let y_at = memory.alloc(want.len() * 4);
            let (query_tiles, column_tiles) = (queries.div_ceil(tile), if tile == 128 { 1 } else { e.div_ceil(128) });
            let column_tiles = if entry == "attention_64" { 1 } else { column_tiles };
            let sizes = [heads, e, queries, keys, query_tiles, column_tiles, usize::from(causal)].map(|v| v as u32);
            let args = Fields::default()
                .u64(calls)
                .floats(q_at, samples * queries, d, true)
                .floats(k_at, samples * keys, d, true)
                .floats(v_at, samples * keys, d, true)
                .floats(y_at, samples * queries, d, false)
                .u64(lengths_at)
                .u64(bias_at)
                .u64(0)
                .u32s(&sizes)
                .u32s(&[scale.to_bits()]);
            let grid = [(samples * heads * query_tiles * column_tiles) as u32, 1, 1];
            let launch = ptx_emulator::Launch {
                entry,
                grid,
                block: [128, 1, 1],
                dynamic_shared,
                params: &args.0,
                seed: rng.u64(..),
            };
            module.launch(&mut memory, &launch).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut bytes = vec![0; want.len() * 4];
            memory.read(y_at, &mut bytes).unwrap();
            let got: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            close(&name, &got, &want, if entry == "attention_f32" { 3e-6 } else { 1.0 / 512.0 });
            results.push(got);
        }
        if let [_, short, tall] = &results[..] {
            assert_eq!(short, tall, "{sizes:?}");
        }
    }
}
