#![allow(clippy::unwrap_used)]

use super::*;

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(&tensor.contiguous().view(-1)).unwrap()
}

#[test]
fn channels_last_keeps_values_and_changes_strides() {
    let x = Tensor::arange(2 * 3 * 4 * 5, (Kind::Float, Device::Cpu)).view([2, 3, 4, 5]);
    assert!(!is_channels_last(&x));
    let y = to_channels_last(&x).unwrap();
    assert!(is_channels_last(&y));
    assert_eq!(y.stride(), [60, 1, 15, 3]);
    assert_eq!(values(&x), values(&y));
}

#[test]
fn channels_last_of_a_vector_is_an_error_on_one_line() {
    let message = to_channels_last(&Tensor::zeros([3], (Kind::Float, Device::Cpu))).unwrap_err().to_string();
    assert!(message.contains("channels_last") && !message.contains('\n'), "{message}");
}

#[test]
fn backward_fills_a_view_that_was_set_as_gradient() {
    let mut flat = Tensor::zeros([10], (Kind::Float, Device::Cpu));
    let w = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).set_requires_grad(true);
    set_grad(&w, &flat.narrow(0, 4, 3)).unwrap();
    (&w * &w).sum(Kind::Float).backward();
    (&w * 10.0).sum(Kind::Float).backward();
    let expected = [0.0, 0.0, 0.0, 0.0, 12.0, 14.0, 16.0, 0.0, 0.0, 0.0];
    assert_eq!(as_f32_mut(&mut flat).unwrap(), expected);
}

#[test]
fn a_gradient_of_other_strides_is_refused() {
    let w = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let transposed = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu)).transpose(0, 1);
    let message = set_grad(&w, &transposed).unwrap_err().to_string();
    assert!(message.contains("strides"), "{message}");
    assert!(!w.grad().defined());
}

#[test]
fn slices_write_through_and_refuse_what_is_not_dense() {
    let mut x = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
    as_f32_mut(&mut x).unwrap()[4] = 7.0;
    assert_eq!(x.double_value(&[1, 1]), 7.0);
    assert!(as_f32(&x.transpose(0, 1)).is_err());
    assert!(as_f32(&x.to_kind(Kind::Double)).is_err());
    assert_eq!(as_f32(&Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))).unwrap().len(), 0);
    assert_eq!(as_bytes(&Tensor::from(1_i64)).unwrap(), 1_i64.to_ne_bytes());
}

#[test]
fn bytes_that_do_not_fill_the_shape_are_refused() {
    assert!(from_bytes(&[0; 11], &[3], Kind::Float).is_err());
    assert!(from_bytes(&[0; 12], &[-3], Kind::Float).is_err());
    assert!(from_bytes(&[0; 12], &[i64::MAX, i64::MAX], Kind::Float).is_err());
    assert_eq!(values(&from_f32(&[1.0, 2.0], &[2, 1]).unwrap()), [1.0, 2.0]);
}

#[test]
fn set_data_reaches_every_handle_and_drops_the_gradient() {
    let w = Tensor::ones([1, 2, 2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let handle = w.shallow_clone();
    set_grad(&w, &w.detach().zeros_like()).unwrap();
    set_data(&handle, &to_channels_last(&w.detach()).unwrap()).unwrap();
    assert!(is_channels_last(&w) && w.requires_grad() && !w.grad().defined());
    assert!(set_data(&w, &Tensor::zeros([3], (Kind::Float, Device::Cpu))).is_err());
}
