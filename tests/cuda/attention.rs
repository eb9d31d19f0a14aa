//! The CUDA kernels of attention in the emulator: every size of head, tails of every tile, masks and biases.

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

    /// What a kernel makes of it in the emulator, whose warps take turns by `seed`. Inputs are given as f16.
    fn emulated(&self, kernel: Kernel, name: &str, seed: u64) -> Vec<f32> {
        let [samples, heads, e, queries, keys] = self.sizes;
        let d = heads * e;
        let text = MODULES.iter().find(|(name, _)| *name == kernel.module).unwrap().1;
        let module = ptx_emulator::Module::parse(text).unwrap();
        let mut memory = ptx_emulator::Memory::new();
        let mut place = |bytes: &[u8]| {
            let at = memory.alloc(bytes.len());
            memory.write(at, bytes).unwrap();
            at
        };
        let halves = |x: &[f32]| x.iter().flat_map(|&v| f16::from_f32(v).to_bits().to_le_bytes()).collect::<Vec<u8>>();
        let calls = place(&[0; 8]);
        let [q, k, v] = [self.q, self.k, self.v].map(|x| place(&halves(x)));
        let lengths = self.lengths.map_or(0, |l| place(l.as_bytes()));
        let bias = self.bias.map_or(0, |b| place(b.as_bytes()));
        let numbers = samples * queries * d;
        let y = memory.alloc(numbers * 4);
        let query_tiles = queries.div_ceil(kernel.tile);
        let whole_heads = matches!(kernel.entry, "attention_64" | "attention_128");
        let column_tiles = if whole_heads { 1 } else { e.div_ceil(128) };
        let sizes = [heads, e, queries, keys, query_tiles, column_tiles, usize::from(self.causal)].map(|v| v as u32);
        let args = Fields::default()
            .u64(calls)
            .floats(q, samples * queries, d, true)
            .floats(k, samples * keys, d, true)
            .floats(v, samples * keys, d, true)
            .floats(y, samples * queries, d, false)
            .u64(lengths)
            .u64(bias)
            .u64(0)
            .u32s(&sizes)
            .u32s(&[self.scale.to_bits()]);
        let launch = ptx_emulator::Launch {
            entry: kernel.entry,
            grid: [(samples * heads * query_tiles * column_tiles) as u32, 1, 1],
            block: [128, 1, 1],
            dynamic_shared: kernel.shared,
            params: &args.0,
            seed,
        };
        module.launch(&mut memory, &launch).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut bytes = vec![0; numbers * 4];
        memory.read(y, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// One of the kernels: its module and entry, the queries of a tile, and bytes of dynamic shared memory.
struct Kernel {
    module: String,
    entry: &'static str,
    tile: usize,
    shared: u32,
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
                    y: Output::Floats(y),
                    samples,
                    heads,
                    scale,
                    causal: false,
                    int8: false,
                    condition: None,
                    keys: k.rows / samples,
                    workspace: Slot::default(),
                    softmax: None,
                    bias: None,
                    lengths: None,
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

/// Masks, biases, a scale below zero. And the kernels for many queries, whose results must
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
        let attention = Attention { sizes, q, k, v, scale, causal, lengths, bias };
        let want = attention.oracle();

        let padded = [32, 40, 64, 72, 80, 96, 128, 160].into_iter().find(|&p| e <= p);
        let module = padded.map_or("attention_wide".to_string(), |p| format!("attention.e{p}"));
        let shared =
            padded.map_or(0, |p| 4 * if p <= 64 { 64 } else { 32 } * ((p as u32).next_multiple_of(16) + 8) * 2);
        let kernel = |module: &str, entry, tile, shared| Kernel { module: module.to_string(), entry, tile, shared };
        let mut kernels = vec![kernel("attention_f32", "attention_f32", 32, 0)];
        kernels.push(kernel(&module, if padded.is_some() { "attention_64" } else { "attention_wide" }, 64, shared));
        if padded.is_some_and(|p| p <= 80) {
            kernels.push(kernel(&module, "attention_128", 128, shared));
        }
        let mut results = Vec::new();
        for kernel in kernels {
            let entry = kernel.entry;
            let name = format!("{entry} {sizes:?} causal {causal} lengths {lengths:?} biased {biased} scale {scale}");
            let got = attention.emulated(kernel, &name, rng.u64(..));
            close(&name, &got, &want, if entry == "attention_f32" { 3e-6 } else { 1.0 / 512.0 });
            results.push(got);
        }
        if let [_, short, tall] = &results[..] {
            assert_eq!(short, tall, "{sizes:?}");
        }
    }
}
