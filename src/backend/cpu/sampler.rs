//! What happens to the latents between model calls.

use super::arena::{Arena, floats_mut};
use crate::backend::args::{ModelInputArgs, SamplerStepArgs};
use crate::sampler::{COLUMNS, MAX_STATES, NOISE, OUTPUT, ROW_FLOATS, ROW_NEXT, X0};

/// See [`Backend::model_input`](crate::backend::Backend::model_input).
pub fn model_input(arena: &mut Arena, run: usize, args: &ModelInputArgs) {
    let bytes = args.len * args.copies * 4;
    let (out, reads) = arena.write(args.sample.at..args.sample.at + bytes);
    let state: &[f32] = reads.slice(args.state.at, args.len);
    let row: &[f32] = reads.slice(args.rows.of(run), ROW_FLOATS);
    let scale = row[0];
    for copy in floats_mut(out).chunks_exact_mut(args.len) {
        for (to, from) in copy.iter_mut().zip(state) {
            *to = scale * from;
        }
    }
}

/// See [`Backend::sampler_step`](crate::backend::Backend::sampler_step).
pub fn sampler_step(arena: &mut Arena, run: usize, args: &SamplerStepArgs) {
    let at = args.states.at;
    let (states, reads) = arena.write(at..at + args.n_states * args.len * 4);
    let states = floats_mut(states);
    let model = reads.floats(&args.model, 0);
    let noise: Option<&[f32]> = args.noise.map(|n| reads.slice(n.of(run), args.len));
    let row: &[f32] = reads.slice(args.rows.of(run), ROW_FLOATS);
    let (x0_of, most) = ([row[1], row[2]], row[3]);
    let (channels, cols) = (args.channels, args.model.cols);
    let unconditional = args.len / channels * cols;
    for i in 0..args.len {
        let at = i / channels * cols + i % channels;
        let output = match args.guidance {
            Some(scale) => {
                let (c, u) = (model[at], model[unconditional + at]);
                u + scale * (c - u)
            }
            None => model[at],
        };
        let mut old = [0.0; MAX_STATES];
        for (s, old) in old[..args.n_states].iter_mut().enumerate() {
            *old = states[s * args.len + i];
        }
        let x0 = (x0_of[0] * old[0] + x0_of[1] * output).clamp(-most, most);
        for (s, next) in row[ROW_NEXT..].chunks_exact(COLUMNS).take(args.n_states).enumerate() {
            let mut new = next[OUTPUT] * output + next[X0] * x0;
            for (c, old) in next[..args.n_states].iter().zip(&old) {
                // A term that does not count is not read: a state may be unset before its first use.
                new += if *c == 0.0 { 0.0 } else { c * old };
            }
            if let Some(noise) = noise {
                new += next[NOISE] * noise[i];
            }
            states[s * args.len + i] = new;
        }
    }
}
