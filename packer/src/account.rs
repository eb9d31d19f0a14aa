//! The numbers that papers publish of a quantized denoiser, worked out from the packed file: sizes, average bits, and bit
//! operations of one call of one sample (quantization.md §1.6, §1.8).

use crate::error::Result;
use crate::lower::Part;
use crate::quantize::{Method, average_bits, is_counted, quantized_bytes, raw_bytes};
use aquatint::raw::codec::Bits;
use aquatint::raw::format::Packed;
use aquatint::raw::program::shape::{self, TensorType};
use aquatint::raw::program::{Dims, Program, Role, Tensor};
use aquatint::raw::work::{self, Macs};
use serde::Serialize;
use std::collections::HashMap;

/// Bits that floats count as.
const FLOAT: u64 = 16;

/// Sizes by Qua2SeDiMo's accounting: biases and norms apart, codebooks included, layers that a checkpoint has several
/// times counted as often.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Size {
    /// Bits of a weight before: 16, or 32 as for Stable Diffusion 1.5.
    pub precision: u64,
    /// Bytes of the layers before.
    pub full_bytes: u64,
    /// And after.
    pub quantized_bytes: u64,
    /// `precision * quantized_bytes / full_bytes`.
    pub average_bits: f64,
}

/// What a denoiser's call costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// The denoiser, the refiner, or a text encoder.
    pub network: &'static str,
    /// The phase of its program that is meant; 0 where there is one.
    pub phase: usize,
    /// The share of a run that the phase holds.
    pub share: f64,
    /// By the precision before.
    pub sizes: [Size; 2],
    /// Multiply-adds of all layers.
    pub layer_macs: u64,
    /// Of queries with keys, and as many again of their weights with values.
    pub attention_macs: u64,
    /// Sum over layers and attention of multiply-adds times the bits of both factors, as Q-Diffusion counts; floats count
    /// as 16 bits, and so does attention, even where it is in 8-bit codes or rounded to grids.
    pub bit_operations: f64,
    /// Qua2SeDiMo's count, in whole tera: activations of 16 bits, codebooks as weights of 16, attention of floats, and a
    /// layer that is not quantized as 16 per multiply-add. It has attention and norms from tables of constants; here attention
    /// is counted, and norms are not.
    pub qua2sedimo_tera_bit_operations: u64,
}

/// A layer as it counts.
struct Layer {
    /// Rows, and weights of one.
    matrix: (u64, u64),
    /// How often the checkpoint has it.
    copies: u64,
    /// Its codes, if it has any.
    codes: Option<(Method, Bits)>,
    /// Bits of what multiplies it; floats count as [`FLOAT`].
    activation_bits: u64,
    /// Whether its size counts.
    counted: bool,
}

/// The accounts of the denoisers of a packed file, one for each phase, and then of its text encoders.
///
/// A call is of one image or video of the model's own size, with a prompt of as many tokens as the model reads at most.
///
/// # Errors
/// If the shapes of a program do not fit.
pub fn accounts<D: AsRef<[u8]>>(packed: &Packed<D>) -> Result<Vec<Account>> {
    let pipeline = &packed.meta().pipeline;
    let [height, width] = pipeline.latent_size.map(|n| n as usize);
    let encoders = pipeline.text.as_ref().map_or(&[][..], |text| &text.encoders);
    let tokens = |encoder: usize| encoders.get(encoder).map_or(1, |encoder| encoder.tokens as usize);
    let frames = pipeline.frames as usize;
    let dims = |role| match role {
        Role::TextEncoder => Dims { tokens: tokens(0), ..Dims::ONE },
        Role::TextEncoder2 => Dims { tokens: tokens(1), ..Dims::ONE },
        Role::Denoiser | Role::Refiner | Role::VaeDecoder | Role::VaeEncoder => {
            Dims { height, width, tokens: tokens(0), frames, ..Dims::ONE }
        }
    };
    let types: Vec<TensorType> = packed.tensors().iter().map(|t| t.ty()).collect();
    let mut accounts = Vec::new();
    for (part, roles) in
        [(Part::Denoiser, [Role::Denoiser, Role::Refiner]), (Part::Text, [Role::TextEncoder, Role::TextEncoder2])]
    {
        let layers = layers(packed, part);
        for program in packed.programs().iter().filter(|p| roles.contains(&p.role)) {
            for phase in program.phases.shares().into_iter().enumerate() {
                accounts.push(account(program, phase, (&types, &layers), &dims(program.role))?);
            }
        }
    }
    Ok(accounts)
}

/// The layers of a part of the model, by their weights.
fn layers<D: AsRef<[u8]>>(packed: &Packed<D>, of: Part) -> HashMap<Tensor, Layer> {
    let meta = packed.meta();
    let named: HashMap<String, _> =
        meta.quantization.layers.iter().map(|l| (format!("{}.weight", l.name), l)).collect();
    let layer = |(i, tensor): (usize, &aquatint::raw::format::TensorInfo)| {
        let meta_layer = named.get(&tensor.name)?;
        let part = Part::of(tensor.name.split_once('/')?.0);
        let (method, bits) = meta_layer.method.rsplit_once('-').unwrap_or((&meta_layer.method, ""));
        let codes = Method::parse(method).zip(bits.parse().ok().and_then(Bits::new));
        let copies = 1 + meta.aliases.get(&tensor.name).map_or(0, Vec::len) as u64;
        let rows = tensor.dims.first().copied().unwrap_or(1) as u64;
        let weights = tensor.dims.iter().product::<usize>() as u64;
        let activation_bits = match meta_layer.activation_bits {
            32 => FLOAT,
            bits => u64::from(bits),
        };
        let matrix = (rows, weights / rows.max(1));
        let layer = Layer { matrix, copies, codes, activation_bits, counted: is_counted(&tensor.name) };
        (part == of).then_some((Tensor(i as u32), layer))
    };
    packed.tensors().iter().enumerate().filter_map(layer).collect()
}

fn account(
    program: &Program,
    (phase, share): (usize, f64),
    (types, layers): (&[TensorType], &HashMap<Tensor, Layer>),
    dims: &Dims,
) -> Result<Account> {
    let program = &*program.in_phase(phase);
    let values = shape::infer(program, types, dims)?;
    let (mut layer_macs, mut attention_macs, mut bit_operations, mut published) = (0, 0, 0.0, 0u128);
    let mut used: Vec<Tensor> = Vec::new();
    for (i, node) in program.nodes.iter().enumerate() {
        let Macs { layers: macs, attention } = work::macs(program, i, (types, &values), dims);
        attention_macs += attention;
        let Some(weight) = work::layer(&node.op) else { continue };
        let Some(layer) = layers.get(&weight) else { continue };
        let bits = layer.codes.map_or(FLOAT, |(_, bits)| u64::from(bits.get()));
        layer_macs += macs;
        bit_operations += macs as f64 * (bits * layer.activation_bits) as f64;
        let per_mac = match layer.codes {
            Some((Method::Uniform(_), bits)) => u64::from(bits.get()) * FLOAT,
            Some(_) => FLOAT * FLOAT,
            None => FLOAT,
        };
        published += u128::from(macs * per_mac);
        used.push(weight);
    }
    // Both products, floats on both sides.
    let attention = u128::from(attention_macs) * u128::from(2 * FLOAT * FLOAT);
    used.sort_unstable();
    used.dedup();
    let own = || used.iter().map(|tensor| &layers[tensor]).filter(|layer| layer.counted);
    let size = |precision: u64| {
        let full = |l: &Layer| l.copies * raw_bytes(l.matrix.0 * l.matrix.1, precision);
        let quantized = |l: &Layer| match l.codes {
            Some((method, bits)) => l.copies * quantized_bytes(l.matrix.0, l.matrix.1, method, bits, precision),
            None => full(l),
        };
        let (full_bytes, quantized_bytes) = (own().map(full).sum(), own().map(quantized).sum());
        let average_bits = average_bits(quantized_bytes, full_bytes, precision);
        Size { precision, full_bytes, quantized_bytes, average_bits }
    };
    Ok(Account {
        network: program.role.name(),
        phase,
        share,
        sizes: [16, 32].map(size),
        layer_macs,
        attention_macs,
        bit_operations: bit_operations + attention as f64,
        qua2sedimo_tera_bit_operations: ((published + attention) / 1_000_000_000_000) as u64,
    })
}
