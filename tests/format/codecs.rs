//! The codec: what is packed reads back exactly, at every width and odd size, and takes the bytes it should.

use aquatint::raw::codec::layout::{Layout, PackedMatrix, Tables, fault, pack};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use common::tiny::{AlignedBytes, Noise, codecs};

const ROWS: [usize; 6] = [1, 3, 15, 16, 17, 33];
const COLS: [usize; 14] = [1, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 300];

/// Every combination of codec, odd size and number of taps that divides the columns or multiplies them.
fn each_case(mut check: impl FnMut(&QuantizedMatrix, usize)) {
    let mut noise = Noise(3);
    let mut cases = 0;
    for (bits, grain, int8) in codecs() {
        for rows in ROWS {
            for cols in COLS {
                for taps in [1, 9] {
                    check(&noise.matrix(bits, grain, int8, rows, cols * taps), taps);
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 24 * 6 * 14 * 2);
}

/// Size of a coded tensor, from the words of `codec::layout` alone.
fn bytes_of(matrix: &QuantizedMatrix, taps: usize) -> usize {
    let blob = |bytes: usize| bytes.div_ceil(64) * 64;
    let padded = matrix.rows.div_ceil(16) * 16;
    // Codes that one 16-byte unit holds: 64 of two bits, 128 of one, 32 of four, 16 of eight.
    let per_unit: &[usize] = match matrix.bits.get() {
        2 => &[64],
        3 => &[64, 128],
        4 => &[32],
        5 => &[32, 128],
        6 => &[32, 64],
        8 => &[16],
        other => panic!("no codec has {other} bits"),
    };
    let planes: usize = per_unit.iter().map(|codes| blob(padded * matrix.cols.div_ceil(*codes) * 16)).sum();
    let tables = if matrix.grain == Grain::Row { padded } else { 1 };
    let (entry, sums) = match matrix.table {
        TableValues::I8(_) => (1, taps * padded * 4),
        TableValues::F16(_) => (2, 0),
    };
    planes + blob(tables * (1 << matrix.bits.get()) * entry) + 2 * blob(padded * 4) + blob(sums)
}

#[test]
fn what_is_packed_reads_back_exactly() {
    each_case(|truth, taps| {
        let (layout, bytes) = pack(truth, taps);
        let bytes = AlignedBytes::new(&bytes);
        let matrix = PackedMatrix::new(layout, bytes.as_ref()).expect("the layout's own bytes");
        for row in 0..truth.rows {
            let codes = &truth.codes[row * truth.cols..][..truth.cols];
            for (col, &code) in codes.iter().enumerate() {
                assert_eq!(matrix.code(row, col), code, "{layout:?} row {row} col {col}");
                let (got, want) = (matrix.weight(row, col), truth.weight(row, col));
                assert_eq!(got.to_bits(), want.to_bits(), "{layout:?} row {row} col {col}: {got} {want}");
            }
            for (chunk, codes) in codes.chunks(16).enumerate() {
                let got = matrix.codes16(row, chunk);
                assert_eq!(got[..codes.len()], *codes, "{layout:?} row {row} chunk {chunk}");
                assert!(got[codes.len()..].iter().all(|&c| c == 0), "{layout:?} row {row}: {got:?} beyond the last");
            }
        }
        assert_eq!((matrix.scale.len(), matrix.offset.len()), (layout.padded_rows(), layout.padded_rows()));
        assert_eq!(matrix.scale[..truth.rows], truth.scale);
        assert_eq!(matrix.offset[..truth.rows], truth.offset);
    });
}

#[test]
fn tap_sums_are_the_sums_of_integer_table_entries() {
    each_case(|truth, taps| {
        let (layout, bytes) = pack(truth, taps);
        let bytes = AlignedBytes::new(&bytes);
        let matrix = PackedMatrix::new(layout, bytes.as_ref()).expect("the layout's own bytes");
        let TableValues::I8(_) = truth.table else {
            assert!(matches!(matrix.tables, Tables::F16(_)) && matrix.tap_sums.is_empty(), "{layout:?}");
            return;
        };
        let padded = truth.rows.next_multiple_of(16);
        assert_eq!(matrix.tap_sums.len(), taps * padded, "{layout:?}");
        let per_tap = truth.cols / taps;
        for tap in 0..taps {
            for row in 0..padded {
                let mut sum = 0.0;
                for k in 0..per_tap {
                    if row < truth.rows {
                        sum += f64::from(truth.entry(row, truth.codes[row * truth.cols + tap * per_tap + k]));
                    }
                }
                assert_eq!(f64::from(matrix.tap_sums[tap * padded + row]), sum, "{layout:?} tap {tap} row {row}");
            }
        }
    });
}

#[test]
fn sizes_are_those_of_the_documented_layout() {
    each_case(|truth, taps| {
        let (layout, bytes) = pack(truth, taps);
        assert_eq!(bytes.len(), bytes_of(truth, taps), "{layout:?}");
        assert_eq!(layout.blobs().total, bytes.len(), "{layout:?}");
    });
}

#[test]
fn blobs_are_aligned_and_follow_each_other() {
    each_case(|truth, taps| {
        let int8 = matches!(truth.table, TableValues::I8(_));
        let QuantizedMatrix { bits, rows, cols, grain, .. } = *truth;
        let blobs = Layout { bits, rows, cols, taps, grain, int8 }.blobs();
        let [first, second] = blobs.planes;
        let mut end = 0;
        for blob in [first, second, blobs.table, blobs.scale, blobs.offset, blobs.tap_sums] {
            assert_eq!(blob.start % 64, 0);
            assert!(blob.start >= end && blob.start - end < 64, "{blob:?} after byte {end}");
            assert!(blob.end >= blob.start);
            end = blob.end;
        }
        assert!(blobs.total >= end && blobs.total - end < 64 && blobs.total.is_multiple_of(64));
    });
}

#[test]
fn only_bytes_of_the_right_length_are_a_matrix() {
    let truth = Noise(4).matrix(Bits::new(3).expect("a width"), Grain::Row, true, 5, 70);
    let (layout, mut bytes) = pack(&truth, 1);
    bytes.extend([0; 64]);
    for len in 0..bytes.len() {
        let cut = AlignedBytes::new(&bytes[..len]);
        let is_matrix = PackedMatrix::new(layout, cut.as_ref()).is_some();
        assert_eq!(is_matrix, len == bytes.len() - 64, "{len} bytes");
    }
    let mut shifted = vec![0; 2];
    shifted.extend_from_slice(&bytes[..bytes.len() - 64]);
    let shifted = AlignedBytes::new(&shifted);
    assert!(PackedMatrix::new(layout, &shifted.as_ref()[2..]).is_none(), "an unaligned base");
}

#[test]
fn a_sound_matrix_has_no_fault() {
    each_case(|truth, taps| {
        let (layout, bytes) = pack(truth, taps);
        assert_eq!(fault(layout, AlignedBytes::new(&bytes).as_ref()), None, "{layout:?}");
    });
}

/// Unpacks by the scalar truth and packs again: bytes that have no fault must come back, so no byte is free.
#[test]
fn bytes_without_fault_are_what_their_matrix_packs_to() {
    let mut noise = Noise(5);
    let (mut faulty, mut sound) = (0, 0);
    for (bits, grain, int8) in codecs() {
        for taps in [1, 9] {
            let (layout, bytes) = pack(&noise.matrix(bits, grain, int8, 5, 7 * taps), taps);
            let mut bytes = AlignedBytes::new(&bytes);
            for at in 0..bytes.as_ref().len() {
                let flip = 1 << noise.below(8);
                bytes.as_mut()[at] ^= flip;
                match fault(layout, bytes.as_ref()) {
                    Some(_) => faulty += 1,
                    None => {
                        sound += 1;
                        let matrix = PackedMatrix::new(layout, bytes.as_ref()).expect("unchanged in length");
                        assert!(pack(&unpack(&matrix), taps).1 == bytes.as_ref(), "{layout:?} byte {at} ^ {flip:#x}");
                    }
                }
                bytes.as_mut()[at] ^= flip;
            }
        }
    }
    assert!(faulty > 1000 && sound > 1000, "{faulty} faulty, {sound} sound");
}

fn unpack(matrix: &PackedMatrix) -> QuantizedMatrix {
    let Layout { bits, rows, cols, grain, .. } = matrix.layout;
    let used = bits.levels() * if grain == Grain::Row { rows } else { 1 };
    QuantizedMatrix {
        bits,
        rows,
        cols,
        codes: (0..rows * cols).map(|i| matrix.code(i / cols, i % cols)).collect(),
        table: match matrix.tables {
            Tables::I8(t) => TableValues::I8(t[..used].to_vec()),
            Tables::F16(t) => TableValues::F16(t[..used].to_vec()),
        },
        grain,
        scale: matrix.scale[..rows].to_vec(),
        offset: matrix.offset[..rows].to_vec(),
    }
}

#[test]
fn each_kind_of_fault_is_named() {
    let bits = Bits::new(4).expect("a width");
    // Three rows of sixteen and 37 columns of 64 leave padding in every blob.
    let layout_of = |int8| pack(&Noise(6).matrix(bits, Grain::Row, int8, 3, 37), 1);
    let (layout, good) = layout_of(true);
    let blobs = layout.blobs();
    let nan = f32::NAN.to_le_bytes();
    let cases: [(&str, usize, &[u8]); 8] = [
        ("zeros as padding", 16 * 16 + 5, &[0x11]), // row 0, second unit, columns 37 and 53
        ("zeros as padding", 3 * 16, &[1]),         // row 3 of the first row block
        ("zeros as padding", blobs.table.start + 3 * 16, &[1]),
        ("zeros as padding", blobs.scale.start + 12, &[1]),
        ("zeros as padding", blobs.offset.start + 12, &[1]),
        ("finite numbers", blobs.scale.start, &nan),
        ("finite numbers", blobs.offset.start + 8, &nan),
        ("the tap sums of its codes", blobs.tap_sums.start + 4, &[good[blobs.tap_sums.start + 4] ^ 1]),
    ];
    for (want, at, bytes) in cases {
        let mut bad = AlignedBytes::new(&good);
        bad.as_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(fault(layout, bad.as_ref()), Some(want), "byte {at}");
    }
    assert_eq!(fault(layout, &good[..64]), Some("the bytes of its layout"));

    let (layout, bytes) = layout_of(false);
    let mut bad = AlignedBytes::new(&bytes);
    bad.as_mut()[layout.blobs().table.start..][..2].copy_from_slice(&[0, 0x7c]); // infinity
    assert_eq!(fault(layout, bad.as_ref()), Some("finite numbers"));
}

#[test]
fn widths_are_those_that_planes_can_hold() {
    let known: Vec<u32> = (0..300).filter(|&b| Bits::new(b).is_some()).collect();
    assert_eq!(known, [2, 3, 4, 5, 6, 8]);
    for bits in Bits::ALL {
        assert_eq!(bits.planes().iter().sum::<u8>(), bits.get());
        assert_eq!(bits.levels(), 2usize.pow(bits.get().into()));
        assert!(bits.planes().iter().all(|p| [1, 2, 4, 8].contains(p)));
    }
}
