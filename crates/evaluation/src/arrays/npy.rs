//! One array as `numpy.save` writes it (NEP 1): magic, version, length of the header, a Python dict as text, elements.

use super::{Array, Fault};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads an array of f32 or f64, little-endian, in the order of C or Fortran.
pub(super) fn read(bytes: &[u8]) -> Result<Array, Fault> {
    let (header, data) = split(bytes).ok_or_else(|| fault("an array as numpy.save writes it", "other bytes"))?;
    let parsed = Header::parse(header);
    let Some(Header { descr, fortran, dims }) = parsed else {
        return Err(fault("descr, fortran_order and shape", &shown(header)));
    };
    let size = match descr {
        "<f8" => 8,
        "<f4" => 4,
        other => return Err(fault("f32 or f64, little-endian (<f4, <f8)", &shown(other))),
    };
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if count.and_then(|n| n.checked_mul(size)) != Some(data.len()) {
        return Err(fault(
            &format!("the elements of {dims:?}, of {size} bytes each"),
            &format!("{} bytes", data.len()),
        ));
    }
    let values: Vec<f64> = match size {
        8 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
    };
    let values = if fortran { row_major(&values, &dims) } else { values };
    Ok(Array { dims, values })
}

fn fault(expected: &str, got: &str) -> Fault {
    (expected.into(), got.into())
}

/// `text` from the file, fit for a message.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Header and elements.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_at_checked(2)?;
    // The length has two bytes in version 1 and four since.
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(b, rest)| (u16::from_le_bytes(*b).into(), rest))?,
        2 | 3 => rest.split_first_chunk::<4>().map(|(b, rest)| (u32::from_le_bytes(*b), rest))?,
        _ => return None,
    };
    let (header, data) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

struct Header<'a> {
    descr: &'a str,
    fortran: bool,
    dims: Vec<usize>,
}

impl<'a> Header<'a> {
    /// The three entries of a dict such as `{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }`.
    fn parse(text: &'a str) -> Option<Self> {
        let after = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
        let descr = after("descr")?.strip_prefix('\'')?.split_once('\'')?.0;
        let order = after("fortran_order")?;
        let fortran = order.starts_with("True");
        let (shape, _) = after("shape")?.strip_prefix('(')?.split_once(')')?;
        let axes = shape.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        let dims = axes.map(|axis| axis.parse().ok()).collect::<Option<Vec<usize>>>()?;
        (fortran || order.starts_with("False")).then_some(Header { descr, fortran, dims })
    }
}

/// `values`, whose first axis runs fastest, with the last one running fastest.
fn row_major(values: &[f64], dims: &[usize]) -> Vec<f64> {
    let mut strides = vec![1; dims.len()];
    (1..dims.len()).for_each(|axis| strides[axis] = strides[axis - 1] * dims[axis - 1]);
    let place = |mut at: usize| {
        dims.iter().zip(&strides).rev().fold(0, |from, (&d, stride)| {
            let index = at % d;
            at /= d;
            from + index * stride
        })
    };
    (0..values.len()).map(|at| values[place(at)]).collect()
}
