//! What becomes of a changed file: opened, verified, planned and used.

use crate::subjects::Subject;
use aquatint::model::Model;
use aquatint::pipeline::{Plans, Prompts};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::{Cuda, CudaSizing};
use aquatint::raw::format::{Packed, SectionKind};
use common::drive::{Use, lies, request, small, uses};
use common::emulated::Emulated;
use common::meta_edits;
use common::sealed::Sealed;
use fastrand::Rng;

/// Of so many sound files that are small, one runs on the emulated device too.
const EMULATED: u32 = 100;

/// How far a changed file came.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// It opened.
    pub opened: bool,
    /// It was verified.
    pub sound: bool,
    /// It made something.
    pub ran: bool,
    /// It made something else than the file it was made from.
    pub other: bool,
    /// What it should not have made or refused: META alone was changed, where nothing may change.
    pub hole: Option<String>,
    /// It ran on the emulated device.
    pub emulated: bool,
}

/// Does with `file`, a change of `subject`, whatever it lets one do.
pub fn examine(subject: &Subject, file: &Sealed, rng: &mut Rng) -> Outcome {
    let mut outcome = Outcome::default();
    let bytes = file.seal();
    let Ok(packed) = Packed::new(&bytes) else { return outcome };
    outcome.opened = true;
    outcome.sound = Model::verify(&packed).is_ok();
    // What was not verified must be as safe to use, though it may make anything.
    let Ok(model) = Model::new(&packed) else { return outcome };
    let places = differences(subject, file);
    let size = if places.is_some() { subject.size } else { small(&model) };
    let mut request = request(&model, size);
    request.prompts = Prompts::blank(&model, 2);
    for narrow in [Element::F16, Element::F32] {
        // Whether it fits is all the same.
        let _ = Plans::new(&CudaSizing { narrow }, &model, &request);
    }
    let tier = rng.usize(..subject.made.len());
    let made = {
        let cpu = Cpu::new(Tier::available()[tier]);
        uses(&cpu, &model, size)
    };
    outcome.ran = made.iter().any(|u| u.made.is_ok());
    let before = &subject.made[tier];
    outcome.other = made.iter().any(|new| new.made.is_ok() && !before.iter().any(|old| new.same(old)));
    if let Some(places) = places.filter(|_| outcome.sound) {
        outcome.hole = lies(before, &made, &places).into_iter().next();
    }
    if outcome.sound && outcome.ran && subject.emulated && rng.u32(..EMULATED) == 0 {
        outcome.emulated = emulate(&packed, &model, size, rng.u64(..));
    }
    outcome
}

/// Where META of `file` is another than that of `subject`; none if other sections are other ones too.
fn differences(subject: &Subject, file: &Sealed) -> Option<Vec<String>> {
    let mut others = SectionKind::ALL.into_iter().filter(|&kind| kind != SectionKind::Meta);
    let meta = file.meta()?;
    others
        .all(|kind| file.section(kind) == subject.file.section(kind))
        .then(|| meta_edits::differences(&subject.meta, &meta))
}

/// Uses the model on the emulated device, which faults on any access that is out of place. Whether it did anything.
fn emulate<D: AsRef<[u8]>>(packed: &Packed<D>, model: &Model<'_, D>, size: [usize; 2], seed: u64) -> bool {
    let narrow = if seed.is_multiple_of(2) { Element::F16 } else { Element::F32 };
    let cuda = Cuda::new(Emulated::new(seed), packed.data(), narrow);
    let made: Vec<Use> = uses(&cuda, model, size);
    for Use { name, made } in &made {
        // An error of the device means that a kernel was given what it must not be given.
        if let Err(e) = made
            && e.kind() == aquatint::error::ErrorKind::Device
        {
            panic!("on the emulated device, {name}: {e}");
        }
    }
    made.iter().any(|u| u.made.is_ok())
}
