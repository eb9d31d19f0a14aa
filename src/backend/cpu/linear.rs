//! Linear layers.

use super::arena::{Arena, CodesView, Reads};
use super::epilogue::{Epilogue, PerRow};
use super::floats;
use super::gemm::{Matrix, product_f32, product_i8};
use super::simd::Isa;
use crate::backend::args::{Floats, Input, LinearArgs, PerSample};
use crate::format::TensorView;
use crate::program::Act;

/// See [`Op::Linear`](crate::program::Op::Linear) and [`Op::GatedLinear`](crate::program::Op::GatedLinear).
pub fn linear<I: Isa>(isa: I, arena: &mut Arena, args: &LinearArgs, weight: &TensorView, bias: Option<&TensorView>) {
    let (out, reads) = arena.write_floats(&args.y);
    let epilogue = Epilogue { gated: args.gated, ..epilogue(&reads, bias, args.act, args.gate, args.residual) };
    match (&args.x, weight) {
        (Input::Codes(x), TensorView::Codes(w)) => {
            let codes = reads.codes(x);
            product_i8(isa, &matrix_of(&codes), &codes, w, out, &epilogue);
        }
        (Input::Floats(x), _) => {
            let rows = Matrix { data: reads.floats(x), stride: x.cols, len: x.cols, sums: &[] };
            product_f32(isa, &rows, args.channels(), weight, out, &epilogue);
        }
        (Input::Codes(_), _) => unreachable!("the shape rules pair codes with integer weights only"),
    }
}

fn matrix_of<'a>(codes: &CodesView<'a>) -> Matrix<'a, u8> {
    Matrix { data: codes.codes, stride: codes.stride, len: codes.cols, sums: codes.sum }
}

/// Resolves what comes after a product.
pub fn epilogue<'a>(
    reads: &Reads<'a>,
    bias: Option<&TensorView<'a>>,
    act: Act,
    gate: Option<(PerSample, usize)>,
    residual: Option<Floats>,
) -> Epilogue<'a> {
    Epilogue {
        bias: bias.map(floats),
        act,
        gated: false,
        shift: None,
        gate: gate.map(|(gate, offset)| PerRow::new(reads, &gate, offset)),
        residual: residual.map(|r| reads.floats(&r)),
    }
}
