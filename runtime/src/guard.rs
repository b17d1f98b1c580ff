//! Calls into wgpu that panic where a device is lost, made to return.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a call whose panic is caught and told of in other words. A panic hook may keep quiet then.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs `call`; what it panicked with, in words, where it does. wgpu 30 has errors of its own for everything else, but
/// `Device::poll` panics on a device that the driver has lost, and the end of a queue may.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    // What the call leaves half done belongs to a device that is given up.
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    outcome.map_err(|panic| words(panic.as_ref()))
}

/// Gets rid of what belongs to a device that is lost: what its driver makes of the end is no business of the program any more. Where
/// the device is `hung` its end would wait for it for ever, so what is left of it stays where it is.
pub fn discard<T>(value: T, hung: bool) {
    if hung {
        std::mem::forget(value);
    } else {
        drop(guarded(move || drop(value)));
    }
}

/// What a panic says, on one line.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("a panic without words").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_words() {
        assert_eq!(guarded(|| 3), Ok(3));
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let hook = std::panic::take_hook();
        let inner = seen.clone();
        std::panic::set_hook(Box::new(move |_| {
            inner.store(is_guarded(), std::sync::atomic::Ordering::SeqCst)
        }));
        let caught = guarded(|| -> u32 { panic!("Error in poll:\n  {}", "lost") });
        std::panic::set_hook(hook);
        assert_eq!(caught, Err("Error in poll: lost".to_owned()));
        assert!(seen.load(std::sync::atomic::Ordering::SeqCst) && !is_guarded());
    }
}
