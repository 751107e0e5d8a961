//! When, within a backward pass, the gradient of a parameter is there.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{TorchError, checked};

type Accumulated = extern "C" fn(*const c_void, usize);
type Release = extern "C" fn(*const c_void);

unsafe extern "C" {
    fn relabel_torch_hook_gradient(
        parameter: *const C_tensor,
        context: *const c_void,
        index: usize,
        accumulated: Accumulated,
        release: Release,
    ) -> *mut c_char;
}

/// Is told the index of each parameter whose gradient has got all that the backward pass adds to it, on the thread that
/// computes it: for a GPU another one than that which called for the backward pass.
pub type Listener = Arc<dyn Fn(usize) + Send + Sync>;

/// Hooks on the gradients of some parameters. They stay with the parameters, and tell nobody anything unless
/// [`GradientHooks::listen`] runs; a parameter has the hook that it was given last.
pub struct GradientHooks(Arc<Ear>);

/// What all hooks share. It lives as long as the last of them: a thread of libtorch's may still be computing when
/// the backward pass has failed on another.
#[derive(Default)]
struct Ear {
    listener: Mutex<Option<Listener>>,
    /// With what a listener panicked first. It may not unwind through libtorch.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl GradientHooks {
    /// Gives each of `parameters` a hook; their indices count from 0.
    ///
    /// # Errors
    /// A tensor that is not a leaf that requires gradients, or what libtorch throws.
    pub fn install<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Self, TorchError> {
        let ear = Arc::new(Ear::default());
        for (index, parameter) in parameters.into_iter().enumerate() {
            let context = Arc::into_raw(Arc::clone(&ear)).cast();
            // SAFETY: `parameter` is a live at::Tensor for the whole call. The hook has a share of its own in what
            // stands behind the context, which the shim gives back by `release`, whether it succeeds or not.
            checked("hook a gradient", unsafe {
                relabel_torch_hook_gradient(parameter.as_ptr(), context, index, accumulated, release)
            })?;
        }
        Ok(Self(ear))
    }

    /// Runs `backward`, and has `listener` told meanwhile which gradients are there. A panic of the listener's goes on
    /// when `backward` has returned. Not to be called while it runs.
    pub fn listen<T>(&self, listener: Listener, backward: impl FnOnce() -> T) -> T {
        /// Ends the listening, after a panic too.
        struct Listening<'a>(&'a Ear);
        impl Drop for Listening<'_> {
            fn drop(&mut self) {
                *locked(&self.0.listener) = None;
            }
        }
        *locked(&self.0.panic) = None;
        *locked(&self.0.listener) = Some(listener);
        let listening = Listening(&self.0);
        let value = backward();
        drop(listening);
        if let Some(panic) = locked(&self.0.panic).take() {
            resume_unwind(panic);
        }
        value
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each lock is held for one assignment, so that a poisoned value is still a whole one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn accumulated(context: *const c_void, index: usize) {
    // SAFETY: the hook that calls has a share in it.
    let ear = unsafe { &*context.cast::<Ear>() };
    // Taken out, so that the listener runs without the lock.
    let Some(listener) = locked(&ear.listener).clone() else { return };
    let told = catch_unwind(AssertUnwindSafe(move || listener(index)));
    if let Err(panic) = told {
        locked(&ear.panic).get_or_insert(panic);
    }
}

extern "C" fn release(context: *const c_void) {
    // SAFETY: the share of one hook, from `Arc::into_raw`, given back once.
    drop(unsafe { Arc::from_raw(context.cast::<Ear>()) });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Kind};

    use super::*;

    fn parameter(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// Remembers in which order it was told what.
    fn recorder() -> (Listener, Arc<Mutex<Vec<usize>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&told);
        (Arc::new(move |index| locked(&kept).push(index)), told)
    }

    #[test]
    fn each_gradient_is_told_of_once_when_all_of_it_is_there_and_only_to_who_listens() {
        // Three in a row, the second used twice, and one that is not used at all.
        let [a, b, c, unused] = [2.0, 3.0, 5.0, 7.0].map(|value| parameter(&[value]));
        let hooks = GradientHooks::install([&a, &b, &c, &unused]).unwrap();
        let loss = || (((&a * &b).exp() * &b).sin() * &c).sum(Kind::Float);
        loss().backward();
        let silent = [&a, &b, &c].map(|p| p.grad().double_value(&[0]));
        let (first, told) = recorder();
        let found = Arc::new(Mutex::new(Vec::new()));
        let (grads, kept) = ([&a, &b, &c].map(Tensor::grad), Arc::clone(&found));
        let grads = Mutex::new(grads);
        let listener: Listener = Arc::new(move |index: usize| {
            first(index);
            // The whole of it, the first backward pass's too.
            locked(&kept).push((index, locked(&grads)[index].double_value(&[0])));
        });
        hooks.listen(listener, || loss().backward());
        // The last one first; the other two are there together.
        assert!(matches!(locked(&told)[..], [2, 0, 1] | [2, 1, 0]), "{told:?}");
        for &(index, value) in locked(&found).iter() {
            assert_eq!(value, 2.0 * silent[index], "{index}");
        }
        loss().backward();
        assert_eq!(locked(&told).len(), 3, "nobody listens any more");
    }

    #[test]
    fn a_panic_of_the_listener_goes_round_libtorch() {
        let p = parameter(&[1.0, 2.0]);
        let hooks = GradientHooks::install([&p]).unwrap();
        let listener: Listener = Arc::new(|index| panic!("told of {index}"));
        let went_on = AtomicUsize::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            hooks.listen(listener, || {
                (&p * 3.0).sum(Kind::Float).backward();
                went_on.fetch_add(1, Ordering::SeqCst);
            })
        }));
        assert_eq!(caught.unwrap_err().downcast_ref::<String>().unwrap(), "told of 0");
        assert_eq!((went_on.into_inner(), p.grad().double_value(&[1])), (1, 3.0));
        // The next one is a new one.
        let (listener, told) = recorder();
        hooks.listen(listener, || (&p * 3.0).sum(Kind::Float).backward());
        assert_eq!(*locked(&told), [0]);
    }

    #[test]
    fn hooks_that_outlive_their_owner_are_harmless_and_their_share_ends_with_them() {
        let p = parameter(&[1.0]);
        let hooks = GradientHooks::install([&p]).unwrap();
        let ear = Arc::downgrade(&hooks.0);
        drop(hooks);
        assert_eq!(ear.strong_count(), 1, "the hook's own");
        (&p * 2.0).sum(Kind::Float).backward();
        let hooks = GradientHooks::install([&p]).unwrap();
        assert_eq!(ear.strong_count(), 0, "another hook has taken its place");
        let ear = Arc::downgrade(&hooks.0);
        drop((hooks, p));
        assert_eq!(ear.strong_count(), 0, "the parameter is gone");
    }

    #[test]
    fn what_is_no_parameter_is_refused() {
        let plain = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let p = parameter(&[1.0]);
        for tensor in [&plain, &(&p * 2.0)] {
            let error = GradientHooks::install([&p, tensor]).err().unwrap().to_string();
            assert!(error.contains("no parameter"), "{error}");
        }
    }
}
