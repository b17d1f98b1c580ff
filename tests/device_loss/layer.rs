//! A Vulkan layer whose devices are lost, as drivers lose them: `vkQueueSubmit` and everything that waits return
//! `VK_ERROR_DEVICE_LOST`, for good. Compiled by the test beside it, with nothing but the standard library.
//!
//! `EPL_LAYER_LOSE=40,0,25` has the first device that submits anything lost at its 40th submission, the second one not, the
//! third one at its 25th, and none after that. A program that lets go of Vulkan begins to count anew. `EPL_LAYER_LOSE_AT` has something else happen then: `wait` has it lost at that wait
//! instead, `hang` has it finish nothing any more, and `drop` has that one submission do nothing, as if it had been done.

#![allow(non_snake_case, reason = "Vulkan's own names")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

type Handle = *mut c_void;
type Function = unsafe extern "system" fn();
type Answer = Option<Function>;
type GetProcAddr = unsafe extern "system" fn(Handle, *const c_char) -> Answer;
type Create = unsafe extern "system" fn(Handle, *const Base, *const c_void, *mut Handle) -> i32;
type CreateInstance = unsafe extern "system" fn(*const Base, *const c_void, *mut Handle) -> i32;
type Submit = unsafe extern "system" fn(Handle, u32, *const c_void, u64) -> i32;
type Wait = unsafe extern "system" fn(Handle, *const c_void, u64) -> i32;
type Counter = unsafe extern "system" fn(Handle, u64, *mut u64) -> i32;
type Idle = unsafe extern "system" fn(Handle) -> i32;

const SUCCESS: i32 = 0;
const TIMEOUT: i32 = 2;
const ERROR_INITIALIZATION_FAILED: i32 = -3;
const ERROR_DEVICE_LOST: i32 = -4;
const LOADER_INSTANCE_CREATE_INFO: i32 = 47;
const LOADER_DEVICE_CREATE_INFO: i32 = 48;
const LAYER_LINK_INFO: i32 = 0;

/// What all structures of Vulkan begin with.
#[repr(C)]
struct Base {
    kind: i32,
    next: *const Base,
}

/// `VkLayerInstanceCreateInfo` and `VkLayerDeviceCreateInfo`.
#[repr(C)]
struct LayerInfo {
    base: Base,
    function: i32,
    link: *mut Link,
}

/// `VkLayerInstanceLink` and `VkLayerDeviceLink`, which has one function more.
#[repr(C)]
struct Link {
    next: *mut Link,
    instance_proc: GetProcAddr,
    device_proc: GetProcAddr,
}

/// What a device's calls go on to.
#[derive(Clone, Copy)]
struct Next {
    device: usize,
    proc: GetProcAddr,
}

#[derive(Default)]
struct State {
    instance_proc: Option<GetProcAddr>,
    devices: HashMap<usize, (Next, Life)>,
    /// Devices that have submitted something.
    used: usize,
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Passes,
    Lost,
    Hangs,
    Dropped,
}

/// `VkSubmitInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SubmitInfo {
    kind: i32,
    next: *const c_void,
    waits: u32,
    wait_semaphores: *const u64,
    wait_stages: *const u32,
    commands: u32,
    command_buffers: *const Handle,
    signals: u32,
    signal_semaphores: *const u64,
}

#[derive(Clone, Copy, Default)]
struct Life {
    /// Which device that submits it is; 0 before it does.
    number: usize,
    submissions: u64,
    waits: u64,
    lost: bool,
    hung: bool,
    /// What the device last said to have finished.
    finished: u64,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a handle and those that belong to its device have in common: the loader's table at its beginning.
unsafe fn key(handle: Handle) -> usize {
    unsafe { *handle.cast::<usize>() }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// When the device with this number is to be lost.
fn due(number: usize) -> Option<u64> {
    let list = variable("EPL_LAYER_LOSE");
    let at = list.split(',').nth(number.checked_sub(1)?)?.trim().parse().ok()?;
    (at > 0).then_some(at)
}

/// Counts a call, and has something happen where it is due. What becomes of the call.
unsafe fn counted(handle: Handle, is_wait: bool) -> Fate {
    let mut state = state();
    let State { devices, used, .. } = &mut *state;
    let Some((next, life)) = devices.get_mut(&unsafe { key(handle) }) else { return Fate::Passes };
    if life.number == 0 && !is_wait {
        *used += 1;
        life.number = *used;
    }
    let count = if is_wait { &mut life.waits } else { &mut life.submissions };
    *count += 1;
    let at = variable("EPL_LAYER_LOSE_AT");
    let due = due(life.number).filter(|_| (at == "wait") == is_wait);
    match (at.as_str(), due) {
        ("drop", Some(due)) if *count == due => return Fate::Dropped,
        ("drop", _) | (_, None) => {}
        ("hang", Some(due)) => life.hung |= *count >= due,
        (_, Some(due)) if *count >= due && !life.lost => {
            life.lost = true;
            // What is under way ends first: the caller may free everything from now on.
            let idle = unsafe { found::<Idle>(*next, c"vkDeviceWaitIdle") };
            if let Some(idle) = idle {
                unsafe { idle(next.device as Handle) };
            }
        }
        _ => {}
    }
    match (life.lost, life.hung) {
        (true, _) => Fate::Lost,
        (false, true) => Fate::Hangs,
        (false, false) => Fate::Passes,
    }
}

/// The next layer's or the driver's function.
unsafe fn found<F>(next: Next, name: &CStr) -> Option<F> {
    let function = unsafe { (next.proc)(next.device as Handle, name.as_ptr()) }?;
    assert_eq!(size_of::<F>(), size_of::<Function>());
    // SAFETY: the caller names the type that Vulkan gives the function of this name.
    Some(unsafe { std::mem::transmute_copy(&function) })
}

unsafe fn next_of(handle: Handle) -> Option<Next> {
    state().devices.get(&unsafe { key(handle) }).map(|(next, _)| *next)
}

/// The link to the next layer in a chain of structures, which is moved on by one.
unsafe fn link(info: *const Base, kind: i32) -> Option<*mut Link> {
    let mut at = unsafe { (*info).next };
    while !at.is_null() {
        let found = at.cast::<LayerInfo>().cast_mut();
        unsafe {
            if (*at).kind == kind && (*found).function == LAYER_LINK_INFO {
                let link = (*found).link;
                (*found).link = (*link).next;
                return Some(link);
            }
            at = (*at).next;
        }
    }
    None
}

unsafe extern "system" fn create_instance(info: *const Base, alloc: *const c_void, out: *mut Handle) -> i32 {
    unsafe {
        let Some(link) = link(info, LOADER_INSTANCE_CREATE_INFO) else { return ERROR_INITIALIZATION_FAILED };
        let proc = (*link).instance_proc;
        let Some(create) = proc(std::ptr::null_mut(), c"vkCreateInstance".as_ptr()) else {
            return ERROR_INITIALIZATION_FAILED;
        };
        let create: CreateInstance = std::mem::transmute(create);
        state().instance_proc = Some(proc);
        create(info, alloc, out)
    }
}

unsafe extern "system" fn create_device(
    adapter: Handle,
    info: *const Base,
    alloc: *const c_void,
    out: *mut Handle,
) -> i32 {
    unsafe {
        let Some(link) = link(info, LOADER_DEVICE_CREATE_INFO) else { return ERROR_INITIALIZATION_FAILED };
        let (instance_proc, device_proc) = ((*link).instance_proc, (*link).device_proc);
        let Some(create) = instance_proc(std::ptr::null_mut(), c"vkCreateDevice".as_ptr()) else {
            return ERROR_INITIALIZATION_FAILED;
        };
        let create: Create = std::mem::transmute(create);
        let created = create(adapter, info, alloc, out);
        if created == SUCCESS {
            let next = Next { device: *out as usize, proc: device_proc };
            state().devices.insert(key(*out), (next, Life::default()));
        }
        created
    }
}

/// Calls the driver's function.
macro_rules! passed {
    ($kind:ident, $vulkan:literal, $first:ident $(, $more:ident)*) => {
        match next_of($first).and_then(|next| found::<$kind>(next, $vulkan)) {
            Some(function) => function($first $(, $more)*),
            None => ERROR_INITIALIZATION_FAILED,
        }
    };
}

/// Waits as long as a device that does not answer: for ever.
fn for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

unsafe extern "system" fn queue_submit(queue: Handle, count: u32, submits: *const c_void, fence: u64) -> i32 {
    unsafe {
        match counted(queue, false) {
            Fate::Lost => ERROR_DEVICE_LOST,
            Fate::Hangs => SUCCESS,
            Fate::Passes => passed!(Submit, c"vkQueueSubmit", queue, count, submits, fence),
            Fate::Dropped => {
                let infos = std::slice::from_raw_parts(submits.cast::<SubmitInfo>(), count as usize);
                let empty: Vec<SubmitInfo> =
                    infos.iter().map(|info| SubmitInfo { commands: 0, ..*info }).collect();
                let submits = empty.as_ptr().cast::<c_void>();
                passed!(Submit, c"vkQueueSubmit", queue, count, submits, fence)
            }
        }
    }
}

unsafe extern "system" fn wait_semaphores(device: Handle, info: *const c_void, timeout: u64) -> i32 {
    unsafe {
        match counted(device, true) {
            Fate::Lost => ERROR_DEVICE_LOST,
            Fate::Hangs => {
                std::thread::sleep(Duration::from_nanos(timeout));
                TIMEOUT
            }
            _ => passed!(Wait, c"vkWaitSemaphores", device, info, timeout),
        }
    }
}

unsafe extern "system" fn counter(device: Handle, semaphore: u64, value: *mut u64) -> i32 {
    unsafe {
        let fate = counted(device, true);
        if fate == Fate::Lost {
            return ERROR_DEVICE_LOST;
        }
        let answer = passed!(Counter, c"vkGetSemaphoreCounterValue", device, semaphore, value);
        if let Some((_, life)) = state().devices.get_mut(&key(device)) {
            if fate == Fate::Hangs {
                *value = life.finished;
            } else {
                life.finished = *value;
            }
        }
        answer
    }
}

unsafe extern "system" fn queue_idle(queue: Handle) -> i32 {
    unsafe {
        match counted(queue, true) {
            Fate::Lost => ERROR_DEVICE_LOST,
            Fate::Hangs => for_ever(),
            _ => passed!(Idle, c"vkQueueWaitIdle", queue),
        }
    }
}

unsafe extern "system" fn device_idle(device: Handle) -> i32 {
    unsafe {
        match counted(device, true) {
            Fate::Lost => ERROR_DEVICE_LOST,
            Fate::Hangs => for_ever(),
            _ => passed!(Idle, c"vkDeviceWaitIdle", device),
        }
    }
}

/// The functions of this layer.
unsafe fn own(name: &CStr) -> Answer {
    // SAFETY: Vulkan hands all functions out as pointers to one without arguments.
    unsafe {
        Some(match name.to_bytes() {
            b"vkCreateInstance" => std::mem::transmute::<CreateInstance, Function>(create_instance),
            b"vkCreateDevice" => std::mem::transmute::<Create, Function>(create_device),
            b"vkGetInstanceProcAddr" => {
                std::mem::transmute::<GetProcAddr, Function>(epl_layer_get_instance_proc_addr)
            }
            b"vkGetDeviceProcAddr" => {
                std::mem::transmute::<GetProcAddr, Function>(epl_layer_get_device_proc_addr)
            }
            b"vkQueueSubmit" => std::mem::transmute::<Submit, Function>(queue_submit),
            b"vkWaitSemaphores" | b"vkWaitSemaphoresKHR" => {
                std::mem::transmute::<Wait, Function>(wait_semaphores)
            }
            b"vkGetSemaphoreCounterValue" | b"vkGetSemaphoreCounterValueKHR" => {
                std::mem::transmute::<Counter, Function>(counter)
            }
            b"vkQueueWaitIdle" => std::mem::transmute::<Idle, Function>(queue_idle),
            b"vkDeviceWaitIdle" => std::mem::transmute::<Idle, Function>(device_idle),
            _ => return None,
        })
    }
}

/// # Safety
/// Called by Vulkan's loader.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn epl_layer_get_device_proc_addr(device: Handle, name: *const c_char) -> Answer {
    unsafe {
        own(CStr::from_ptr(name)).or_else(|| next_of(device).and_then(|next| (next.proc)(device, name)))
    }
}

/// # Safety
/// Called by Vulkan's loader.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn epl_layer_get_instance_proc_addr(
    instance: Handle,
    name: *const c_char,
) -> Answer {
    unsafe {
        if let Some(function) = own(CStr::from_ptr(name)) {
            return Some(function);
        }
        let proc = state().instance_proc?;
        proc(instance, name)
    }
}
