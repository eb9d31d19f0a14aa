//! Tensor records: encode and decode side by side.

use super::{MAX_NAME, MAX_WEIGHTS};
use crate::codec::layout::{BLOB_ALIGN, Layout};
use crate::codec::{Bits, Grain};
use crate::error::{Error, Result};
use crate::program::shape::{MAX_AXES, TensorType};
use crate::program::{Numbered, numbered};
use std::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::*};

/// One tensor.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TensorRecord {
    /// Axes, outermost first, unused ones 1. Convolution weights are `(o, h, w, i)`.
    pub dims: [U32; MAX_AXES],
    /// Number of axes, 1 to [`MAX_AXES`]; 2 or 4 for codes; checked.
    pub rank: u8,
    /// A [`Storage`] as a number; checked.
    pub kind: u8,
    /// Code width: 2, 3, 4, 5, 6 or 8, or 0 unless codes; checked.
    pub bits: u8,
    /// How many codebooks, a [`Grain`] as a number; 0 unless codes; checked.
    pub grain: u8,
    /// Bytes of the name in STRINGS; names follow each other in table order.
    pub name_bytes: U32,
    /// First byte in DATA; exactly where the tensor before ends, rounded up to 64; checked.
    pub offset: U64,
    /// Bytes, as the kind and axes demand; checked.
    pub bytes: U64,
    /// Zero; checked.
    pub reserved: [u8; 20],
}

const _: () = assert!(size_of::<TensorRecord>() == 64);

numbered! {
    "Kinds of tensors"
    /// [`TensorKind`] without its attributes.
    pub enum Storage {
        /// Plain 32-bit floats.
        F32 = 0 "f32",
        /// Plain 16-bit floats.
        F16 = 1 "f16",
        /// Codes with codebooks of `i8`, and a scale and an offset for each row.
        CodesI8 = 2 "codes, i8",
        /// Codes with codebooks of `f16`, and a scale and an offset for each row.
        CodesF16 = 3 "codes, f16",
        /// A file that holds no weights, as it is; one axis.
        Bytes = 4 "bytes",
    }
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// Plain 32-bit floats.
    F32,
    /// Plain 16-bit floats.
    F16,
    /// Codes, codebooks, scales; see [`crate::codec`].
    Codes {
        /// Code width.
        bits: Bits,
        /// Codebooks.
        grain: Grain,
        /// Whether codebooks hold `i8` (else `f16`).
        int8: bool,
    },
    /// A file of the model that holds no weights, such as a tokenizer, as it is; one axis. No program may use it.
    Bytes,
}

impl TensorKind {
    /// The codec's name in listings: `f32`, `f16`, `w4 i8/row`...
    pub fn name(&self) -> String {
        match self {
            TensorKind::F32 => "f32".into(),
            TensorKind::F16 => "f16".into(),
            TensorKind::Codes { bits, grain, int8 } => {
                let grain = if *grain == Grain::Row { "row" } else { "tensor" };
                format!("w{bits} {}/{grain}", if *int8 { "i8" } else { "f16" })
            }
            TensorKind::Bytes => "bytes".into(),
        }
    }

    /// What the shape rules need to know of a tensor of this kind with axes `dims`.
    pub fn ty(&self, dims: &[usize]) -> TensorType {
        TensorType {
            dims: dims.to_vec(),
            integer: matches!(self, TensorKind::Codes { int8: true, .. }),
            f32: *self == TensorKind::F32,
            codes: matches!(self, TensorKind::Codes { .. }),
            bytes: *self == TensorKind::Bytes,
        }
    }
}

/// Kernel taps of a weight with axes `dims`: `h * w` of `(o, h, w, i)`, else 1.
pub fn taps(dims: &[usize]) -> usize {
    if let [_, h, w, _] = *dims { h * w } else { 1 }
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The source checkpoint's name, unmodified.
    pub name: String,
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Storage.
    pub kind: TensorKind,
    /// First byte in DATA.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

impl TensorInfo {
    /// Number of weights; of bytes, if they are not weights.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are none; never true of a checked record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Output channels and inputs per output channel.
    pub fn matrix(&self) -> (usize, usize) {
        (self.dims[0], self.dims[1..].iter().product())
    }

    /// The codec's layout, if the tensor is stored as codes.
    pub fn layout(&self) -> Option<Layout> {
        let TensorKind::Codes { bits, grain, int8 } = self.kind else { return None };
        let (rows, cols) = self.matrix();
        Some(Layout { bits, rows, cols, taps: taps(&self.dims), grain, int8 })
    }

    /// What the shape rules need to know.
    pub fn ty(&self) -> TensorType {
        self.kind.ty(&self.dims)
    }

    /// Bytes that the kind and axes demand.
    pub fn expected_bytes(&self) -> usize {
        match self.kind {
            TensorKind::F32 => self.len() * 4,
            TensorKind::F16 => self.len() * 2,
            TensorKind::Bytes => self.len(),
            TensorKind::Codes { .. } => self.layout().map_or(0, |l| l.blobs().total),
        }
    }

    /// The record of this tensor.
    pub fn encode(&self) -> TensorRecord {
        let mut dims = [U32::new(1); MAX_AXES];
        for (to, &from) in dims.iter_mut().zip(&self.dims) {
            *to = (from as u32).into();
        }
        let (kind, bits, grain) = match self.kind {
            TensorKind::F32 => (Storage::F32, 0, 0),
            TensorKind::F16 => (Storage::F16, 0, 0),
            TensorKind::Bytes => (Storage::Bytes, 0, 0),
            TensorKind::Codes { bits, grain, int8: true } => (Storage::CodesI8, bits.get(), grain as u8),
            TensorKind::Codes { bits, grain, int8: false } => (Storage::CodesF16, bits.get(), grain as u8),
        };
        TensorRecord {
            dims,
            rank: self.dims.len() as u8,
            kind: kind as u8,
            bits,
            grain,
            name_bytes: (self.name.len() as u32).into(),
            offset: (self.offset as u64).into(),
            bytes: (self.bytes as u64).into(),
            reserved: [0; 20],
        }
    }
}

/// Where the next record must point.
#[derive(Default)]
pub struct Cursor {
    /// Bytes of DATA used so far.
    pub data: u64,
    /// Words of ARGS used so far.
    pub words: usize,
    /// Bytes of STRINGS used so far.
    pub strings: usize,
}

impl Cursor {
    /// Takes the next `len` bytes of STRINGS as a name.
    pub fn string(&mut self, strings: &[u8], len: usize) -> Result<String> {
        let err =
            |expected: String, got: String| Err(Error::format("STRINGS", self.strings as u64, "name", expected, got));
        if len == 0 || len > MAX_NAME {
            return err(format!("1 to {MAX_NAME} bytes"), format!("{len} bytes"));
        }
        let Some(bytes) = strings.get(self.strings..self.strings + len) else {
            return err(format!("{len} bytes"), format!("a section of {} bytes", strings.len()));
        };
        let Ok(name) = std::str::from_utf8(bytes) else {
            return err("UTF-8".into(), format!("{bytes:02x?}"));
        };
        if name.chars().any(char::is_control) {
            return err("no control characters".into(), format!("{name:?}"));
        }
        self.strings += len;
        Ok(name.to_owned())
    }

    /// Decodes record `index` of TENSORS, advancing over its name and its bytes.
    pub fn tensor(&mut self, index: usize, r: &TensorRecord, strings: &[u8], data_bytes: usize) -> Result<TensorInfo> {
        let at = index * size_of::<TensorRecord>();
        let err = |field: usize, what: &str, expected: String, got: String| {
            Err(Error::format("TENSORS", (at + field) as u64, format!("tensor {index} {what}"), expected, got))
        };
        let rank = usize::from(r.rank);
        if !(1..=MAX_AXES).contains(&rank) {
            return err(offset_of!(TensorRecord, rank), "rank", format!("1 to {MAX_AXES}"), rank.to_string());
        }
        let all = r.dims.map(|d| d.get() as usize);
        if all[rank..].iter().any(|&d| d != 1) {
            return err(offset_of!(TensorRecord, dims), "dims", format!("1 beyond rank {rank}"), format!("{all:?}"));
        }
        let dims = all[..rank].to_vec();
        match dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
            Some(n) if (1..=MAX_WEIGHTS).contains(&n) => {}
            _ => return err(offset_of!(TensorRecord, dims), "dims", "1 to 2^36 weights".into(), format!("{dims:?}")),
        }
        let storage = Storage::of_number(r.kind.into());
        let kind = match (storage, r.bits, Grain::of_number(r.grain.into())) {
            (Some(Storage::F32), 0, Some(Grain::Tensor)) => TensorKind::F32,
            (Some(Storage::F16), 0, Some(Grain::Tensor)) => TensorKind::F16,
            (Some(Storage::Bytes), 0, Some(Grain::Tensor)) if rank == 1 => TensorKind::Bytes,
            (Some(Storage::Bytes), 0, Some(Grain::Tensor)) => {
                return err(offset_of!(TensorRecord, rank), "rank", "1 for bytes".into(), rank.to_string());
            }
            (Some(storage @ (Storage::CodesI8 | Storage::CodesF16)), bits, Some(grain)) => {
                let Some(bits) = Bits::new(bits.into()) else {
                    return err(offset_of!(TensorRecord, bits), "bits", "2, 3, 4, 5, 6 or 8".into(), bits.to_string());
                };
                if rank != 2 && rank != 4 {
                    return err(offset_of!(TensorRecord, rank), "rank", "2 or 4 for codes".into(), rank.to_string());
                }
                TensorKind::Codes { bits, grain, int8: storage == Storage::CodesI8 }
            }
            (Some(Storage::F32 | Storage::F16 | Storage::Bytes) | None, ..) | (_, _, None) => {
                let got = format!("{:?}", (r.kind, r.bits, r.grain));
                return err(offset_of!(TensorRecord, kind), "kind, bits, grain", "a known combination".into(), got);
            }
        };
        if r.reserved != [0; 20] {
            return err(offset_of!(TensorRecord, reserved), "reserved", "zeros".into(), "other bytes".into());
        }
        let expected_offset = (self.data as usize).next_multiple_of(BLOB_ALIGN);
        if r.offset.get() != expected_offset as u64 {
            return err(offset_of!(TensorRecord, offset), "offset", expected_offset.to_string(), r.offset.to_string());
        }
        let name = self.string(strings, r.name_bytes.get() as usize)?;
        let info = TensorInfo { name, dims, kind, offset: expected_offset, bytes: 0 };
        let bytes = info.expected_bytes();
        if r.bytes.get() != bytes as u64 {
            return err(offset_of!(TensorRecord, bytes), "bytes", bytes.to_string(), r.bytes.to_string());
        }
        match expected_offset.checked_add(bytes) {
            Some(end) if end <= data_bytes => self.data = end as u64,
            _ => {
                return err(
                    offset_of!(TensorRecord, bytes),
                    "end",
                    format!("within DATA of {data_bytes} bytes"),
                    format!("{bytes} bytes from {expected_offset}"),
                );
            }
        }
        Ok(TensorInfo { bytes, ..info })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A convolution over time, height and width has five axes.
    #[test]
    fn records_hold_every_axis() {
        for rank in 1..=MAX_AXES {
            let dims = [2, 3, 1, 2, 5][..rank].to_vec();
            let bytes = dims.iter().product::<usize>() * 4;
            let info = TensorInfo { name: "w".into(), dims, kind: TensorKind::F32, offset: 0, bytes };
            assert_eq!(Cursor::default().tensor(0, &info.encode(), b"w", bytes).expect("sound"), info);
        }
    }
}
