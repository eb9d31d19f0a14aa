//! Kernels compiled by nvcc, compared with the same computation in Rust.

mod common;

use common::{Params, download, launch, parse, upload};
use ptx_emulator::{Launch, Memory};

#[test]
fn matmul() {
    let module = parse(include_str!("fixtures/matmul.ptx"));
    assert_eq!(module.max_threads("matmul"), Some(128));
    assert_eq!(module.param_bytes("matmul"), Some(40));
    let (m, n, k) = (100, 72, 208);
    let mut rng = fastrand::Rng::with_seed(3);
    let a: Vec<i8> = (0..m * k).map(|_| rng.i8(..)).collect();
    let b: Vec<i8> = (0..n * k).map(|_| rng.i8(..)).collect();
    for seed in 0..3 {
        let mut memory = Memory::new();
        let (pa, pb) = (upload(&mut memory, &a), upload(&mut memory, &b));
        let pc = memory.alloc(m * n * 4);
        let params = Params::default().pointer(pa).pointer(pb).pointer(pc).word(m as u32).word(n as u32).word(k as u32);
        let params = [params.0, vec![0; 4]].concat();
        let start = std::time::Instant::now();
        let launch = Launch {
            entry: "matmul",
            grid: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
            block: [128, 1, 1],
            dynamic_shared: 0,
            params: &params,
            seed,
        };
        let stats = module.launch(&mut memory, &launch).unwrap_or_else(|fault| panic!("{fault}"));
        let each = start.elapsed().as_nanos() as f64 / stats.total_instructions as f64;
        println!("{} warp instructions, {each:.1} ns each; {stats:#?}", stats.total_instructions);
        let c = download(&memory, pc, m * n, i32::from_le_bytes);
        for row in 0..m {
            for column in 0..n {
                let want: i32 = (0..k).map(|i| i32::from(a[row * k + i]) * i32::from(b[column * k + i])).sum();
                assert_eq!(c[row * n + column], want, "at ({row}, {column})");
            }
        }
        // The padded rows are free of bank conflicts.
        assert_eq!(stats.matrix_loads.actual, stats.matrix_loads.ideal);
    }
}

#[test]
fn block_sum() {
    let module = parse(include_str!("fixtures/reduce.ptx"));
    let n = 1000;
    let mut memory = Memory::new();
    let x: Vec<f32> = (0..n).map(|i| (i % 17) as f32).collect();
    let (px, ps) = (upload(&mut memory, &x), memory.alloc(4 * 4));
    let params = Params::default().pointer(px).pointer(ps).word(n as u32).word(0);
    launch(&module, &mut memory, "block_sum", 4, 256, &params.0);
    let sums = download(&memory, ps, 4, f32::from_le_bytes);
    for (got, part) in sums.iter().zip(x.chunks(256)) {
        assert_eq!(*got, part.iter().sum::<f32>());
    }
}

#[test]
fn softmax() {
    let module = parse(include_str!("fixtures/reduce.ptx"));
    let (rows, columns) = (3, 333);
    let mut memory = Memory::new();
    let mut rng = fastrand::Rng::with_seed(5);
    let x: Vec<f32> = (0..rows * columns).map(|_| rng.f32() * 20.0 - 10.0).collect();
    let (px, py) = (upload(&mut memory, &x), memory.alloc(rows * columns * 4));
    let params = Params::default().pointer(px).pointer(py).word(columns as u32).word(0.5f32.to_bits()).0;
    let mut run = Launch {
        entry: "softmax",
        grid: [rows as u32, 1, 1],
        block: [128, 1, 1],
        dynamic_shared: columns as u32 * 4,
        params: &params,
        seed: 9,
    };
    module.launch(&mut memory, &run).unwrap_or_else(|fault| panic!("{fault}"));
    let y = download(&memory, py, rows * columns, f32::from_le_bytes);
    for (x, y) in x.chunks(columns).zip(y.chunks(columns)) {
        let top = x.iter().fold(f64::MIN, |top, &x| top.max(f64::from(x) * 0.5));
        let sum: f64 = x.iter().map(|&x| (f64::from(x) * 0.5 - top).exp()).sum();
        for (x, y) in x.iter().zip(y) {
            let want = (f64::from(*x) * 0.5 - top).exp() / sum;
            assert!((f64::from(*y) - want).abs() <= want * 1e-5, "{y} {want}");
        }
    }
    // One word too few of dynamic shared memory is out of bounds.
    run.dynamic_shared -= 4;
    let fault = module.launch(&mut memory, &run).unwrap_err();
    assert_eq!(fault.kind, ptx_emulator::FaultKind::OutOfBounds, "{fault}");
}

#[test]
fn doubles() {
    let module = parse(include_str!("fixtures/doubles.ptx"));
    let mut rng = fastrand::Rng::with_seed(7);
    let mut x: Vec<f64> = (0..160).map(|_| (rng.f64() - 0.5) * 200.0).collect();
    x.extend([0.0, -0.0, 1e5, -3e7, 1e12, 2.5e200, 105615.0, 1e-300]);
    let n = x.len();
    let mut memory = Memory::new();
    let px = upload(&mut memory, &x);
    let [sines, exponentials, powers] = [0; 3].map(|_| memory.alloc(n * 8));
    let singles = memory.alloc(n * 4);
    let params = Params::default().pointer(px).pointer(sines).pointer(exponentials).pointer(powers).pointer(singles);
    let params = params.word(n as u32).word(0);
    launch(&module, &mut memory, "doubles", n.div_ceil(64) as u32, 64, &params.0);
    let read = |at| download(&memory, at, n, f64::from_le_bytes);
    let (sines, exponentials, powers) = (read(sines), read(exponentials), read(powers));
    let singles = download(&memory, singles, n, f32::from_le_bytes);
    let close = |got: f64, want: f64, error: f64, x: f64| {
        let same = got == want || (got - want).abs() <= error * want.abs().max(1e-3) || got.is_nan() && want.is_nan();
        assert!(same, "{got:e} instead of {want:e} for {x:e}");
    };
    for (i, &x) in x.iter().enumerate() {
        close(sines[i], x.sin() + 2.0 * x.cos(), 1e-13, x);
        close(exponentials[i], (x * 0.001).exp(), 1e-14, x);
        close(powers[i], (x.abs() + 0.5).powf(1.7), 1e-14, x);
        let single = x as f32;
        close(singles[i].into(), f64::from(single).sin() + (f64::from(single.abs() + 1.0)).ln(), 1e-4, x);
    }
}

#[test]
fn kinds() {
    let module = parse(include_str!("fixtures/kinds.ptx"));
    let n = 500;
    let mut rng = fastrand::Rng::with_seed(8);
    let x: Vec<i32> = (0..n).map(|_| rng.i32(..)).collect();
    let mut memory = Memory::new();
    let px = upload(&mut memory, &x);
    let (py, ph, p2) = (memory.alloc(n * 4), upload(&mut memory, &[0u32; 8]), memory.alloc(n * 4));
    let params = Params::default().pointer(px).pointer(py).pointer(ph).pointer(p2).word(n as u32).word(0);
    launch(&module, &mut memory, "kinds", 4, 128, &params.0);
    let y = download(&memory, py, n, i32::from_le_bytes);
    let steps = |v: i32| {
        let (mut c, mut steps) = (v as u32 % 97 + 1, 0);
        while c != 1 {
            c = if c & 1 != 0 { 3 * c + 1 } else { c / 2 };
            steps += 1;
        }
        steps
    };
    let padded: Vec<i32> = x.iter().copied().chain(std::iter::repeat_n(0, 12)).collect();
    for (i, &v) in x.iter().enumerate() {
        let out = match v & 7 {
            0 => v.wrapping_mul(3),
            1 => v / 7,
            2 => v % 11,
            3 => v.count_ones() as i32,
            4 => v.leading_zeros() as i32,
            5 => v.wrapping_mul(((v >> 3) as u32 % 6 + 1) as i32),
            6 => v.reverse_bits(),
            _ => {
                let all = ((i as u64) << 32 | u64::from(v as u32)).to_le_bytes();
                i32::from_le_bytes([all[5], all[1], all[7], all[3]])
            }
        };
        let first = i / 32 * 32;
        let ballot = padded[first..first + 32].iter().filter(|&&v| steps(v) > 20).count() as i32;
        let dot: i32 = v.to_le_bytes().iter().zip([4, 3, 2, 1]).map(|(&byte, c)| i32::from(byte as i8) * c).sum();
        let high = ((v as u32 as u64 * 0x9e37_79b9) >> 32) as i32;
        let want = out.wrapping_add(steps(v)).wrapping_add(ballot).wrapping_add(dot).wrapping_add(high);
        assert_eq!(y[i], want, "element {i}: {v:#x}");
    }
    let histogram = download(&memory, ph, 8, u32::from_le_bytes);
    for (bin, &count) in histogram.iter().enumerate() {
        assert_eq!(count as usize, padded.iter().filter(|&&v| v as usize & 7 == bin).count());
    }
}
