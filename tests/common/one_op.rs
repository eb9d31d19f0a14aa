//! Running single ops on a back end: an arena laid out by hand, values of either kind of float.

use super::emulated::Emulated;
use aquatint::raw::backend::args::*;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::backend::{Backend, Call};
use aquatint::raw::format::TensorView;
use half::f16;
use zerocopy::IntoBytes;

/// Places in an arena, one after another.
#[derive(Default)]
pub struct Space {
    pub bytes: usize,
}

impl Space {
    pub fn slot(&mut self, bytes: usize) -> Slot {
        let slot = Slot { at: self.bytes, stride: 0 };
        self.bytes = (self.bytes + bytes).next_multiple_of(64);
        slot
    }

    pub fn floats(&mut self, rows: usize, cols: usize, element: Element) -> Floats {
        Floats { slot: self.slot(rows * cols * element.bytes()), rows, cols, element }
    }

    pub fn codes(&mut self, rows: usize, cols: usize, groups: usize, top: u8) -> Codes {
        let codes = Codes { slot: Slot::default(), rows, cols, groups, top };
        Codes { slot: self.slot(codes.bytes()), ..codes }
    }
}

/// A back end with an arena.
pub struct Bench<B: Backend> {
    pub backend: B,
    pub arena: B::Arena,
}

pub fn cpu(space: &Space) -> Bench<Cpu> {
    let backend = Cpu::new(Scalar);
    let arena = backend.arena(space.bytes, &()).unwrap();
    Bench { backend, arena }
}

/// The emulator with `weights` on it.
pub fn cuda<'w>(space: &Space, weights: &'w [f32]) -> Bench<Cuda<'w, Emulated>> {
    let backend = Cuda::new(Emulated::new(fastrand::u64(..)), weights.as_bytes(), Element::F16);
    let all = (!weights.is_empty()).then(|| backend.weight(TensorView::F32(weights)).unwrap());
    let ready = backend.ready(all.as_slice()).unwrap();
    let mut arena = backend.arena(space.bytes, &ready).unwrap();
    backend.begin(&mut arena, Call::default()).unwrap();
    Bench { backend, arena }
}

impl<B: Backend> Bench<B> {
    pub fn put(&mut self, to: &Floats, data: &[f32]) {
        assert_eq!(data.len(), to.rows * to.cols);
        match to.element {
            Element::F32 => self.backend.write_f32(&mut self.arena, to.slot.at, data).unwrap(),
            Element::F16 => {
                let bits = |v: Option<&f32>| u32::from(f16::from_f32(v.copied().unwrap_or(0.0)).to_bits());
                let words: Vec<u32> = data.chunks(2).map(|c| bits(c.first()) | bits(c.get(1)) << 16).collect();
                self.backend.write_u32(&mut self.arena, to.slot.at, &words).unwrap();
            }
        }
    }

    pub fn words(&self, at: usize, n: usize) -> Vec<u32> {
        let mut out = vec![0.0; n];
        self.backend.read_f32(&self.arena, at, &mut out).unwrap();
        out.into_iter().map(f32::to_bits).collect()
    }

    pub fn get(&self, from: &Floats) -> Vec<f32> {
        let n = from.rows * from.cols;
        match from.element {
            Element::F32 => self.words(from.slot.at, n).into_iter().map(f32::from_bits).collect(),
            Element::F16 => {
                // A trailing half word belongs to nobody and may be unset: read it by the byte before.
                let mut halves = Vec::new();
                for word in self.words(from.slot.at, n / 2) {
                    halves.extend([word as u16, (word >> 16) as u16]);
                }
                assert!(n.is_multiple_of(2), "narrow results of these tests have an even number of elements");
                halves.into_iter().map(|h| f16::from_bits(h).to_f32()).collect()
            }
        }
    }

    /// Codes, scales, zero points and sums.
    pub fn codes(&self, c: &Codes) -> [Vec<u32>; 4] {
        let at = c.slot.at;
        [
            self.words(at, c.rows * c.stride() / 4),
            self.words(at + c.scale_at(), c.groups),
            self.words(at + c.zero_at(), c.groups),
            self.words(at + c.sum_at(), c.rows),
        ]
    }
}

/// What a value of this kind can hold.
pub fn rounded(data: Vec<f32>, element: Element) -> Vec<f32> {
    match element {
        Element::F32 => data,
        Element::F16 => data.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
    }
}

/// `|got - want| <= tolerance * (|want| + rms(want))`.
pub fn close(name: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want).abs();
        assert!(off <= tolerance * (want.abs() + rms), "{name}: element {i}: {got} is not {want}: off by {off:e}");
    }
}

pub const ELEMENTS: [Element; 2] = [Element::F16, Element::F32];
