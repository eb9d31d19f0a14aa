//! What a run shows of itself: a bar while it works, and how long its parts took.

use aquatint::pipeline::Event;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Instant;

/// A bar on standard error; none where that is no terminal, or if `quiet`.
pub fn bar(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:>8} {bar:32} {pos}/{len} {msg} {eta} left");
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Times of steps and decoding, seen through events.
#[derive(Default)]
pub struct Clock {
    images: usize,
    last: Option<Instant>,
    /// Steps that are counted in `seconds`.
    pub steps: usize,
    /// Of those steps.
    seconds: f64,
    /// Seconds that decoding took.
    pub decode: f64,
}

impl Clock {
    /// Takes an event, and shows it.
    pub fn see(&mut self, event: &Event, bar: &ProgressBar) {
        let now = Instant::now();
        let show = |what: &'static str, done: usize, total: usize| {
            bar.set_prefix(what);
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        match event {
            Event::Queued { images, frames, .. } => self.images = images * frames,
            Event::Encoding => show("encode", 0, 1),
            Event::Step { done, total, .. } => {
                if *done > 1 {
                    // The first step also fills tables; it is not counted.
                    self.seconds += self.last.map_or(0.0, |t| (now - t).as_secs_f64());
                    self.steps += 1;
                }
                show("steps", *done, *total);
                bar.set_message(format!("{:.0} ms/step", self.mean() * 1e3));
            }
            Event::Decoding { index } => {
                show("decode", *index, self.images);
                bar.set_message("");
            }
            Event::Image { index } => {
                self.decode += self.last.map_or(0.0, |t| (now - t).as_secs_f64());
                show("decode", index + 1, self.images);
            }
            _ => {}
        }
        self.last = Some(now);
    }

    /// Seconds of a step.
    pub fn mean(&self) -> f64 {
        self.seconds / self.steps.max(1) as f64
    }
}
