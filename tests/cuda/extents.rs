//! No address outside of the arena or of a tensor reaches a kernel: what does not fit is a panic with both numbers, before
//! anything is launched.

use aquatint::raw::backend::args::*;
use aquatint::raw::backend::cuda::{Arena, Cuda, DeviceTensor};
use aquatint::raw::backend::{Backend, Call};
use aquatint::raw::format::TensorView;
use aquatint::raw::program::{Act, ConvStride, QuantizeGrain};
use common::emulated::Emulated;
use std::panic::{AssertUnwindSafe, catch_unwind};
use zerocopy::IntoBytes;

/// Bytes of every arena here.
const BYTES: usize = 4096;

/// The tensors' file: 64 floats.
#[repr(align(64))]
struct Data([u8; 256]);
static DATA: Data = Data([0; 256]);

type Device = Cuda<'static, Emulated>;

fn device() -> (Device, Arena<Emulated>) {
    let device = Cuda::new(Emulated::new(1), &DATA.0, Element::F32);
    let weights = device.ready(&[tensor(&device, 64)]).expect("memory");
    let arena = device.arena(BYTES, &weights).expect("memory");
    (device, arena)
}

/// A tensor of `len` floats.
fn tensor(device: &Device, len: usize) -> DeviceTensor<'static> {
    let floats: &[f32] = zerocopy::FromBytes::ref_from_bytes(&DATA.0[..len * 4]).expect("aligned");
    device.weight(TensorView::F32(floats)).expect("one of the file")
}

fn at(at: usize) -> Slot {
    Slot { at, stride: 0 }
}

fn floats(slot: Slot, rows: usize, cols: usize) -> Floats {
    Floats { slot, rows, cols, element: Element::F32 }
}

/// Asserts that `issue` panics with all of `words` and launches nothing.
fn refused(words: &[&str], issue: impl FnOnce(&Device, &mut Arena<Emulated>)) {
    let (device, mut arena) = device();
    let panic = catch_unwind(AssertUnwindSafe(|| issue(&device, &mut arena))).expect_err(words[0]);
    let message = panic.downcast_ref::<String>().expect("a message");
    words.iter().for_each(|word| assert!(message.contains(word), "{word:?} is not in {message:?}"));
    assert!(device.driver().launches.borrow().is_empty(), "{:?}", device.driver().launches);
}

fn pointwise(x: Floats, y: Floats) -> PointwiseArgs {
    PointwiseArgs { x, y, act: Act::None, mul: 1.0, add: 0.0 }
}

#[test]
fn operands_lie_in_the_arena() {
    // What just fits runs.
    let (device, mut arena) = device();
    device.begin(&mut arena, Call::default()).expect("an upload");
    device.write_f32(&mut arena, 0, &[1.0; BYTES / 8]).expect("an upload");
    let (x, y) = (floats(at(0), 8, 64), floats(at(BYTES / 2), 8, 64));
    device.pointwise(&mut arena, &pointwise(x, y));
    let mut out = [0.0; 512];
    device.read_f32(&arena, BYTES / 2, &mut out).expect("a download");
    assert_eq!(out, [1.0; 512]);

    // A byte more does not, nor does what overflows.
    let over = |y| move |device: &Device, arena: &mut Arena<Emulated>| device.pointwise(arena, &pointwise(x, y));
    refused(&["2048 bytes at 2112 of an arena of 4096"], over(floats(at(BYTES / 2 + 64), 8, 64)));
    refused(&["2304 bytes at 2048 of an arena of 4096"], over(floats(at(BYTES / 2), 9, 64)));
    refused(&["an arena of 4096"], over(floats(at(usize::MAX - 63), 8, 64)));
    let codes = Codes { slot: at(BYTES - 256), rows: 8, cols: 16, groups: 8, top: 255 };
    refused(&["288 bytes at 3840 of an arena of 4096"], |device, arena| {
        let y = QuantizeTo { codes, grain: QuantizeGrain::Row, fixed: None };
        device.quantize(
            arena,
            &QuantizeArgs { x: floats(at(0), 8, 16), y, block: 0, workspace: Slot::default() },
            None,
        );
    });
    refused(&["an arena of 4096"], |device, arena| {
        let codes = Codes { slot: at(2048), groups: 1, ..codes };
        let y = QuantizeTo { codes, grain: QuantizeGrain::Sample, fixed: None };
        device.quantize(arena, &QuantizeArgs { x: floats(at(0), 8, 16), y, block: 0, workspace: at(BYTES) }, None);
    });
}

#[test]
fn calls_have_their_entries() {
    // Sixteen entries of 256 bytes; call 15 is the last.
    let each = floats(Slot { at: 0, stride: 256 }, 1, 64);
    let (device, mut arena) = device();
    device.write_f32(&mut arena, 0, &[1.0; BYTES / 4]).expect("an upload");
    let begin = |arena: &mut Arena<Emulated>, i| device.begin(arena, Call { row: i, step: i });
    begin(&mut arena, 15).expect("an upload");
    device.pointwise(&mut arena, &pointwise(each, floats(at(0), 1, 64)));
    device.wait().expect("sound kernels");
    let beyond = catch_unwind(AssertUnwindSafe(|| begin(&mut arena, 16))).expect_err("beyond");
    assert!(beyond.downcast_ref::<String>().expect("a message").contains("row: 16"));
    refused(&["call Some(16) of 16"], |device, arena| {
        device.begin(arena, Call { row: 16, step: 0 }).expect("an upload");
        device.pointwise(arena, &pointwise(each, floats(at(0), 1, 64)));
    });

    // Captured steps count by themselves, and are stopped as well.
    let (device, mut arena) = self::device();
    device.write_f32(&mut arena, 0, &[1.0; BYTES / 4]).expect("an upload");
    let step = |device: &Device, arena: &mut Arena<Emulated>| {
        device.pointwise(arena, &pointwise(each, floats(at(0), 1, 64)));
        Ok(())
    };
    for i in 0..16 {
        device.replay(&mut arena, Call { row: i, step: i }, step).expect("a step");
    }
    let launched = device.driver().launches.borrow()["pointwise"];
    let replay = || device.replay(&mut arena, Call { row: 16, step: 16 }, step);
    assert!(catch_unwind(AssertUnwindSafe(replay)).is_err());
    assert_eq!((launched, device.driver().launches.borrow()["pointwise"]), (16, 16));
}

const GUIDANCE: Option<Guidance> = Some(Guidance { scale: 2.0, channels: 4 });

/// A step on latents of `len` floats, of four channels.
fn sampler_step(len: usize) -> SamplerStepArgs {
    SamplerStepArgs {
        rows: Slot { at: 0, stride: 320 },
        states: at(640),
        n_states: 1,
        len,
        channels: 4,
        model: floats(at(2048), len / 4, 4),
        guidance: None,
        threshold: None,
        rescale: None,
        noise: None,
        blend: None,
    }
}

#[test]
fn latents_have_room() {
    let input = |len, copies, sample| ModelInputArgs {
        rows: Slot { at: 0, stride: 320 },
        state: at(640),
        len,
        copies,
        sample: at(sample),
    };
    let model_input =
        |args: ModelInputArgs| move |device: &Device, arena: &mut Arena<Emulated>| device.model_input(arena, &args);
    refused(&["2048 bytes at 2112 of an arena of 4096"], model_input(input(256, 2, 2112)));
    refused(&["4096 bytes at 640 of an arena of 4096"], model_input(input(1024, 1, 0)));
    let step = |change: fn(&mut SamplerStepArgs)| {
        let mut args = sampler_step(128);
        change(&mut args);
        move |device: &Device, arena: &mut Arena<Emulated>| device.sampler_step(arena, &args)
    };
    refused(&["3584 bytes at 640"], step(|args| args.n_states = 7));
    refused(&["left: 32", "right: 64", "rows of the model's output"], step(|args| args.guidance = GUIDANCE));
    refused(&["9 channels of 4"], step(|args| (args.channels, args.len, args.model.rows) = (9, 126, 14)));
    refused(&["512 bytes at 3648"], step(|args| args.noise = Some(Slot { at: 3648, stride: 512 })));
    let blend = Inpaint { mask: at(0), init: at(0), noise: at(0) };
    for (slot, bytes) in [(0, 128), (1, 512), (2, 512)] {
        let mut args = SamplerStepArgs { blend: Some(blend), ..sampler_step(128) };
        let blend = args.blend.as_mut().expect("it is there");
        *[&mut blend.mask, &mut blend.init, &mut blend.noise][slot] = at(BYTES - 64);
        let words = format!("{bytes} bytes at {} of an arena of 4096", BYTES - 64);
        refused(&[&words], move |device, arena| device.sampler_step(arena, &args));
    }
    let rescale = Rescale { share: 0.5, images: 32, factors: at(BYTES - 64) };
    let args = SamplerStepArgs {
        guidance: GUIDANCE,
        rescale: Some(rescale),
        model: floats(at(2048), 64, 4),
        ..sampler_step(128)
    };
    refused(&["128 bytes at 4032"], move |device, arena| device.sampler_step(arena, &args));
    // The second row of the table is beyond the arena.
    refused(&["call Some(1) of 1"], |device, arena| {
        device.begin(arena, Call { row: 0, step: 1 }).expect("an upload");
        let rows = Slot { at: BYTES - 320, stride: 320 };
        device.sampler_step(arena, &SamplerStepArgs { rows, ..sampler_step(128) });
    });
}

#[test]
fn weights_are_as_large_as_their_ops() {
    let linear = |y_cols| LinearArgs {
        x: Input::Floats(floats(at(0), 4, 8)),
        y: Output::Floats(floats(at(1024), 4, y_cols)),
        act: Act::None,
        gated: false,
        gate: None,
        residual: None,
    };
    refused(&["left: 64", "right: 72", "elements of a weight of 9 x 8"], |device, arena| {
        device.linear(arena, &linear(9), &tensor(device, 64), None);
    });
    refused(&["8 elements of a plain tensor that has 7"], |device, arena| {
        device.linear(arena, &linear(8), &tensor(device, 64), Some(&tensor(device, 7)));
    });
    refused(&["left: 4", "right: 5", "rows of a linear layer"], |device, arena| {
        let args = LinearArgs { y: Output::Floats(floats(at(1024), 5, 8)), ..linear(8) };
        device.linear(arena, &args, &tensor(device, 64), None);
    });
    let gate = |table: Floats, column| {
        let gate = PerSample { table, condition: at(512), samples: 2, rows_per_sample: 2 };
        LinearArgs { gate: Some((gate, column)), ..linear(8) }
    };
    refused(&["24 columns of a table of 16"], |device, arena| {
        device.linear(arena, &gate(floats(at(2048), 1, 16), 16), &tensor(device, 64), None);
    });
    refused(&["128 bytes at 4032"], |device, arena| {
        device.linear(arena, &gate(floats(at(4032), 2, 16), 8), &tensor(device, 64), None);
    });
    refused(&["left: (16, 18)", "right: (16, 16)", "pixels of a convolution"], |device, arena| {
        let args = Conv2dArgs {
            x: Input::Floats(floats(at(0), 16, 1)),
            y: floats(at(1024), 18, 4),
            samples: 1,
            height: 4,
            width: 4,
            out: [4; 2],
            sampling: ConvStride::Same,
            shift: None,
            residual: None,
        };
        device.conv2d(arena, &args, &tensor(device, 36), None);
    });
    refused(&["64 elements of a plain tensor that has 60"], |device, arena| {
        device.parameter(arena, &ParameterArgs { y: floats(at(0), 8, 8) }, &tensor(device, 60));
    });
    // A tensor of another file is none of the device's, nor is one that ends outside.
    let (device, _) = device();
    static OTHER: [f32; 4] = [0.0; 4];
    assert!(device.weight(TensorView::F32(&OTHER)).is_err());
}

/// The tensors of an arena are found wherever they lie in the file, and no others are.
#[test]
fn tensors_are_those_of_the_arena() {
    // Five tensors of 16 floats; the first two and the fourth are brought along.
    let file: Vec<f32> = (0..80).map(|i| i as f32).collect();
    let device = Cuda::new(Emulated::new(1), file.as_bytes(), Element::F32);
    let tensor = |i: usize| device.weight(TensorView::F32(&file[16 * i..][..16])).expect("one of the file");
    let weights = device.ready(&[tensor(3), tensor(0), tensor(1), tensor(0)]).expect("memory");
    assert_eq!((device.driver().in_use(), device.driver().uploaded.get()), (192, 192));
    let mut arena = device.arena(BYTES, &weights).expect("memory");
    // The arena holds them.
    drop(weights);
    device.begin(&mut arena, Call::default()).expect("an upload");
    let args = ParameterArgs { y: floats(at(0), 1, 16) };
    for i in [0, 1, 3] {
        device.parameter(&mut arena, &args, &tensor(i));
        let mut out = [0.0; 16];
        device.read_f32(&arena, 0, &mut out).expect("a download");
        assert_eq!(out, file[16 * i..][..16]);
    }
    let launched = device.driver().launches.borrow()["parameter"];
    let both = device.weight(TensorView::F32(&file[16..48])).expect("one of the file");
    for (tensor, bytes) in [(tensor(2), "128..192"), (tensor(4), "256..320"), (both, "64..192")] {
        let op = AssertUnwindSafe(|| device.parameter(&mut arena, &args, &tensor));
        let panic = catch_unwind(op).expect_err(bytes);
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.starts_with(&format!("bytes {bytes} of the file are none")), "{message:?}");
    }
    assert_eq!(device.driver().launches.borrow()["parameter"], launched);

    // Nor does an arena take weights that are on another device.
    let other = Cuda::new(Emulated::new(1), file.as_bytes(), Element::F32);
    let weights = other.ready(&[tensor(0)]).expect("memory");
    assert!(catch_unwind(AssertUnwindSafe(|| device.arena(BYTES, &weights))).is_err());
    drop((arena, weights));
    assert_eq!((device.driver().in_use(), other.driver().in_use()), (0, 0));
    // Without weights nothing is allocated for them.
    assert!(device.ready(&[]).is_ok() && device.driver().in_use() == 0);
}
