//! What a device that is lost leaves: an error that says so from every call, and another device with the same results.
//! And the cuts of long steps, which keep systems from resetting a GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use epl_runtime::autodiff::backward;
use epl_runtime::case::normal;
use epl_runtime::faults::Faults;
use epl_runtime::guard::discard;
use epl_runtime::ops::{add, prelu, sum_all};
use epl_runtime::{
    Device, DeviceOptions, Error, Graph, HostTensor, Result, Session, SessionOptions, Store, TensorDesc,
    TensorId,
};

/// PReLUs and sums over x `[40]`, their loss, and the gradients of the slopes.
fn graph() -> (Graph, TensorId) {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([8, 5])).unwrap();
    let (mut y, mut slopes) = (x, Vec::new());
    for index in 0..6 {
        let slope = graph.persistent(&format!("slope {index}"), TensorDesc::f32([5]), "weights").unwrap();
        slopes.push(slope);
        let z = prelu::prelu(&mut graph, y, slope).unwrap();
        y = add::add(&mut graph, z, y).unwrap();
    }
    let flat = epl_runtime::ops::reshape::reshape(&mut graph, y, [40]).unwrap();
    let loss = sum_all::sum_all(&mut graph, flat, 0.25).unwrap();
    graph.fetch(loss);
    backward(&mut graph, loss, &slopes).unwrap().into_iter().for_each(|id| graph.fetch(id));
    (graph, x)
}

/// The fetched tensors of three steps.
fn steps(device: &Arc<Device>, options: SessionOptions) -> Result<Vec<Vec<u8>>> {
    let (graph, x) = graph();
    let store = Store::new(device);
    let mut session = Session::new(&graph, &store, options)?;
    for index in 0..6 {
        store.write(&format!("slope {index}"), &normal([5], 0.3, index + 1).tensor())?;
    }
    let mut fetched = Vec::new();
    for step in 0..3 {
        let values = session.run(&[(x, &normal([8, 5], 1.0, step + 50).tensor())])?;
        fetched.extend(values.iter().map(|value| value.bytes().to_vec()));
    }
    fetched.push(store.read("slope 3")?.bytes().to_vec());
    Ok(fetched)
}

#[test]
fn wherever_it_is_lost_the_error_says_so_and_another_one_takes_its_place() {
    let expected =
        steps(&Device::open(&DeviceOptions::default()).unwrap(), SessionOptions::default()).unwrap();
    for operation in ["submit", "submitted", "read", "poll", "buffer", "pipeline"] {
        for count in [1, 2, 4] {
            let faults: Arc<Faults> = Arc::new(format!("{operation}@{count}").parse().unwrap());
            let options = DeviceOptions { faults: Some(faults.clone()), ..DeviceOptions::default() };
            let device = Device::open(&options).unwrap();
            let Err(error) = steps(&device, SessionOptions::default()) else {
                // Three steps read back once.
                assert!(operation == "read" && count > 1 && faults.left() == 1, "{operation}@{count}");
                continue;
            };
            assert!(matches!(error, Error::DeviceLost { .. }), "{operation}@{count}: {error}");
            assert!(error.to_string().contains(&format!("`{operation}`")), "{error}");
            assert!(error.hint().unwrap().contains("driver"), "{error}");
            assert!(device.lost().is_some());
            // Nothing works on it any more, and nothing hangs or panics.
            for again in [steps(&device, SessionOptions::default()).map(drop), device.finish()] {
                assert!(matches!(again, Err(Error::DeviceLost { .. })), "{again:?}");
            }
            let reopener = device.reopener();
            discard(device, false);
            let other = reopener.same().unwrap();
            assert!(steps(&other, SessionOptions::default()).unwrap() == expected, "{operation}@{count}");
        }
    }
}

#[test]
fn a_step_in_many_submissions_has_the_same_bits() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let submits = |options: SessionOptions| {
        let before = device.counters().submits;
        let fetched = steps(&device, options).unwrap();
        (device.counters().submits - before, fetched)
    };
    let (whole, expected) = submits(SessionOptions::default());
    for poison in [false, true] {
        // What takes longer than nothing has a submission of its own, before and after it was measured.
        let options = SessionOptions {
            longest_submission: Duration::from_nanos(1),
            poison,
            ..SessionOptions::default()
        };
        let (many, fetched) = submits(options);
        assert!(fetched == expected);
        assert!(many > whole + 3 * 12, "{many} submissions instead of {whole}");
    }
}

#[test]
fn what_was_measured_decides_on_the_cuts() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let (graph, x) = graph();
    let store = Store::new(&device);
    // Launches are reckoned with 20 us each.
    let options =
        SessionOptions { longest_submission: Duration::from_micros(100), ..SessionOptions::default() };
    let mut session = Session::new(&graph, &store, options).unwrap();
    let launches = session.plan().dispatches();
    assert_eq!(session.submissions(), launches.div_ceil(5), "before anything was measured");
    let input: HostTensor = normal([8, 5], 1.0, 1).tensor();
    // What was uploaded for it has a submission of its own, before the first step.
    device.settle().unwrap();
    let mut before = device.counters().submits;
    for step in 0..6 {
        session.write(x, input.bytes()).unwrap();
        let parts = session.submissions() as u64;
        session.step().unwrap();
        let after = device.counters().submits;
        assert_eq!(after - before, parts, "step {step}");
        before = after;
    }
    session.flush().unwrap();
}

#[test]
fn what_a_device_has_no_room_for_is_known_before_it_is_needed() {
    let options = DeviceOptions { max_memory_bytes: Some(64 << 20), ..DeviceOptions::default() };
    let device = Device::open(&options).unwrap();
    device.finish().unwrap();
    let before = device.buffer_bytes();
    assert!(device.has_room(0).unwrap() && device.has_room(60 << 20).unwrap());
    assert!(!device.has_room(80 << 20).unwrap());
    assert_eq!(device.buffer_bytes(), before, "all of it is freed");
    // Asked of the driver.
    let device = Device::open(&DeviceOptions::default()).unwrap();
    device.finish().unwrap();
    let before = device.buffer_bytes();
    assert!(device.has_room(1 << 28).unwrap());
    assert_eq!(device.buffer_bytes(), before);
}
