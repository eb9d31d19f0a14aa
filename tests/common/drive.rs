//! Uses a model in every way there is, small: an image, an image from an image, one call of the denoiser.

use crate::meta_edits::{may_change_pictures, may_refuse_requests};
use aquatint::model::Model;
use aquatint::pipeline::{InitImage, Output, Prompts, Request, Session, Texts};
use aquatint::raw::backend::Backend;
use aquatint::raw::text::PromptStyle;
use aquatint::{Error, Result};

/// Most bytes of arena that a use may need; what needs more is refused before it runs.
pub const MOST_MEMORY: usize = 16 << 20;
/// Sampler steps of a use, or the model's own if these are fewer.
const STEPS: usize = 2;

/// A use of a model, and the numbers that it made.
pub struct Use {
    /// What was done.
    pub name: &'static str,
    /// The numbers, or why there are none.
    pub made: Result<Vec<f32>>,
}

impl Use {
    /// Whether both made the same numbers, to the bit. An error is like no other.
    pub fn same(&self, other: &Use) -> bool {
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        matches!((&self.made, &other.made), (Ok(a), Ok(b)) if bits(a) == bits(b))
    }
}

/// Height and width of small latents that a model can make: its own, if they are small.
pub fn small<D>(model: &Model<'_, D>) -> [usize; 2] {
    let multiple = model.latents.multiple;
    model.latents.size.map(|n| n.min(4usize.next_multiple_of(multiple)))
}

/// A request for one image with the model's own settings, but a few steps, and latents of `size`.
pub fn request<D: AsRef<[u8]>>(model: &Model<'_, D>, size: [usize; 2]) -> Request {
    let prompts = match (&model.text, &model.classes) {
        (Some(_), _) => {
            Prompts::Texts(Texts { prompts: vec!["a red cat".into()], negatives: vec![], style: PromptStyle::Weighted })
        }
        (None, Some(_)) => Prompts::Classes(vec![1]),
        (None, None) => Prompts::Unconditional(1),
    };
    let mut request = Request::new(model, prompts);
    request.steps = request.steps.min(STEPS);
    // With two steps, the base makes one and the refiner the other.
    (request.latent_size, request.refiner_start) = (size, 0.5);
    request
}

/// Uses `model` in every way, at latents of `size`.
pub fn uses<B: Backend, D: AsRef<[u8]>>(backend: &B, model: &Model<'_, D>, size: [usize; 2]) -> Vec<Use> {
    let mut session = Session::new(model, backend);
    let mut request = request(model, size);
    let image = run(&mut session, request.clone());
    let prompts = image.as_ref().ok().map(|output| output.prompts.clone());
    let numbers = |output: Output| [output.latents, output.images].concat();
    let mut uses = vec![Use { name: "image", made: image.map(numbers) }];
    let [h, w] = request.pixels(model);
    if (model.image_encoder.is_some() || !model.decoder) && h * w <= MOST_MEMORY {
        let pictures = (0..h * w * 3).map(|i| (i % 17) as f32 / 16.0).collect();
        request.init = Some(InitImage { pictures, strength: 0.9, mask: None });
        request.refiner_start = 1.0;
        let made = run(&mut session, request).map(numbers);
        uses.push(Use { name: "image from an image", made });
    }
    if let Some(prompts) = prompts {
        let sample: Vec<f32> = (0..model.latents.len(size)).map(|i| (i % 13) as f32 / 6.0 - 1.0).collect();
        uses.push(Use { name: "call", made: session.eval(&sample, size, prompts, 321.0).map(|(numbers, _)| numbers) });
    }
    uses
}

/// Runs `request`, if it is small enough.
fn run<B: Backend, D: AsRef<[u8]>>(session: &mut Session<'_, B, D>, request: Request) -> Result<Output> {
    let peak = session.plans(&request)?.peak();
    if peak > MOST_MEMORY {
        return Err(Error::memory("arena", format!("at most {MOST_MEMORY} bytes"), peak));
    }
    session.run(request)
}

/// What is wrong with a sound file that made `before`, and makes `after` since META, and nothing else, became another at
/// `places`.
pub fn lies(before: &[Use], after: &[Use], places: &[String]) -> Vec<String> {
    let pictures = places.iter().any(|at| may_change_pictures(at));
    let refusals = places.iter().any(|at| may_refuse_requests(at));
    let mut found = Vec::new();
    for old in before {
        match after.iter().find(|new| new.name == old.name) {
            None if refusals => {}
            None => found.push(format!("no {}", old.name)),
            Some(Use { made: Err(_), .. }) if refusals => {}
            Some(Use { made: Err(e), .. }) => found.push(format!("{}: {e}", old.name)),
            Some(new) if !pictures && !new.same(old) => found.push(format!("another {}", old.name)),
            Some(_) => {}
        }
    }
    found
}
