//! Where invocations have to arrive together: barriers in all invocations of a workgroup, operations of subgroups and of
//! cooperative matrices in all of a subgroup.
//!
//! naga's validator has an analysis of its own, which takes workgroup memory for the same in all invocations, is asked about barriers
//! only where they are not in a function that is called, and about operations of subgroups not at all. tint has WebGPU's, but does
//! not know matrices. This one follows a module's statements, knows of every variable at every place how far invocations may be
//! apart in it, and follows calls with what is known where they are made.

use std::collections::BTreeSet;

use naga::{
    AddressSpace, Arena, Binding, Block, BuiltIn, CollectiveOperation, Expression, Function, GatherMode,
    GlobalVariable, Handle, Statement, StorageAccess, SubgroupOperation,
};

/// Among which invocations a value is the same, or a place of the program is reached together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Spread {
    /// All of a workgroup.
    #[default]
    Workgroup,
    /// All of a subgroup.
    Subgroup,
    /// Each may have its own.
    Invocation,
}

impl Spread {
    fn raise(&mut self, to: Self) {
        *self = (*self).max(to);
    }
}

/// What is in the variables at a place of a function.
#[derive(Clone, Default, PartialEq)]
struct State {
    /// Whether the place is reached at all: what comes after a `break` is not.
    live: bool,
    locals: Vec<Spread>,
    /// Values, and of pointers what they point to.
    arguments: Vec<Spread>,
    /// Variables of the address space `private`, by global variable.
    privates: Vec<Spread>,
}

impl State {
    /// Where two ways meet.
    fn join(&mut self, other: &Self) {
        if !other.live {
            return;
        }
        if !self.live {
            *self = other.clone();
            return;
        }
        let pairs = [
            (&mut self.locals, &other.locals),
            (&mut self.arguments, &other.arguments),
            (&mut self.privates, &other.privates),
        ];
        for (own, others) in pairs {
            own.iter_mut().zip(others).for_each(|(own, other)| own.raise(*other));
        }
    }
}

/// How far apart invocations are that leave a block early, by what they leave.
#[derive(Clone, Copy, Default)]
struct Exits {
    /// The innermost loop or switch.
    break_: Spread,
    /// An iteration.
    continue_: Spread,
    /// The function.
    return_: Spread,
}

impl Exits {
    fn raise(&mut self, other: Self) {
        self.break_.raise(other.break_);
        self.continue_.raise(other.continue_);
        self.return_.raise(other.return_);
    }

    fn any(self) -> Spread {
        self.break_.max(self.continue_).max(self.return_)
    }
}

/// A call of a function that is being followed.
struct Frame<'m> {
    function: &'m Function,
    /// Of each expression, as it was computed last.
    expressions: Vec<Spread>,
    /// What the function gives back.
    returned: Spread,
    /// Where its ways out meet.
    end: State,
    /// Where the ways out of the loops and switches around meet, the innermost last.
    breaks: Vec<State>,
    /// And those to the next iterations.
    continues: Vec<State>,
}

impl Frame<'_> {
    fn of(&self, expression: Handle<Expression>) -> Spread {
        self.expressions[expression.index()]
    }
}

/// What of a module is not reached together, though it has to be.
pub fn uniformity_faults(module: &naga::Module) -> Vec<String> {
    let mut analysis = Analysis { module, faults: BTreeSet::new() };
    for entry in &module.entry_points {
        let arguments = entry.function.arguments.iter().map(|a| of_builtin(a.binding.as_ref())).collect();
        let privates = vec![Spread::default(); module.global_variables.len()];
        analysis.call(&entry.function, arguments, privates, Spread::Workgroup);
    }
    analysis.faults.into_iter().collect()
}

fn of_builtin(binding: Option<&Binding>) -> Spread {
    match binding {
        Some(Binding::BuiltIn(
            BuiltIn::WorkGroupId
            | BuiltIn::NumWorkGroups
            | BuiltIn::WorkGroupSize
            | BuiltIn::SubgroupSize
            | BuiltIn::NumSubgroups,
        )) => Spread::Workgroup,
        Some(Binding::BuiltIn(BuiltIn::SubgroupId)) => Spread::Subgroup,
        _ => Spread::Invocation,
    }
}

/// The variable that a pointer leads into.
enum Root {
    Global(Handle<GlobalVariable>),
    Local(usize),
    Argument(usize),
}

/// That variable, and whether the pointer is to all of it.
fn root(expressions: &Arena<Expression>, mut pointer: Handle<Expression>) -> Option<(Root, bool)> {
    let mut whole = true;
    loop {
        match expressions[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
                (pointer, whole) = (base, false);
            }
            Expression::GlobalVariable(handle) => return Some((Root::Global(handle), whole)),
            Expression::LocalVariable(handle) => return Some((Root::Local(handle.index()), whole)),
            Expression::FunctionArgument(index) => return Some((Root::Argument(index as usize), whole)),
            _ => return None,
        }
    }
}

struct Analysis<'m> {
    module: &'m naga::Module,
    faults: BTreeSet<String>,
}

impl<'m> Analysis<'m> {
    /// Follows a function that is called with these arguments where invocations are as far apart as `flow` says. Returns what it
    /// gives back and what is in variables afterwards.
    fn call(
        &mut self,
        function: &'m Function,
        arguments: Vec<Spread>,
        privates: Vec<Spread>,
        flow: Spread,
    ) -> (Spread, State) {
        let locals = vec![Spread::default(); function.local_variables.len()];
        let mut state = State { live: true, locals, arguments, privates };
        let mut frame = Frame {
            function,
            expressions: vec![Spread::default(); function.expressions.len()],
            returned: Spread::default(),
            end: State::default(),
            breaks: Vec::new(),
            continues: Vec::new(),
        };
        // Constants, arguments and variables are computed nowhere.
        for (handle, expression) in function.expressions.iter() {
            if expression.needs_pre_emit() {
                frame.expressions[handle.index()] = self.expression(&frame, &state, expression);
            }
        }
        self.block(&mut frame, &mut state, &function.body, flow);
        frame.end.join(&state);
        (frame.returned, frame.end)
    }

    /// What is in the memory that a pointer leads into.
    fn contents(&self, frame: &Frame<'m>, state: &State, pointer: Handle<Expression>) -> Spread {
        match root(&frame.function.expressions, pointer) {
            Some((Root::Local(index), _)) => state.locals[index],
            Some((Root::Argument(index), _)) => state.arguments[index],
            Some((Root::Global(handle), _)) => match self.module.global_variables[handle].space {
                AddressSpace::Uniform | AddressSpace::Immediate => Spread::Workgroup,
                AddressSpace::Storage { access } if !access.contains(StorageAccess::STORE) => {
                    Spread::Workgroup
                }
                AddressSpace::Private => state.privates[handle.index()],
                _ => Spread::Invocation,
            },
            None => Spread::Invocation,
        }
    }

    fn store(&mut self, frame: &Frame<'m>, state: &mut State, pointer: Handle<Expression>, spread: Spread) {
        let (place, whole) = match root(&frame.function.expressions, pointer) {
            Some((Root::Local(index), whole)) => (&mut state.locals[index], whole),
            Some((Root::Argument(index), whole)) => (&mut state.arguments[index], whole),
            Some((Root::Global(handle), whole)) => (&mut state.privates[handle.index()], whole),
            None => {
                self.faults.insert("a store through a pointer of unknown origin".into());
                return;
            }
        };
        *place = if whole { spread } else { spread.max(*place) };
    }

    fn expression(&self, frame: &Frame<'m>, state: &State, expression: &Expression) -> Spread {
        let of = |handle: &Handle<Expression>| frame.of(*handle);
        let all = |handles: &[Handle<Expression>]| handles.iter().map(of).max().unwrap_or_default();
        match expression {
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::Override(_)
            | Expression::ZeroValue(_)
            | Expression::GlobalVariable(_)
            | Expression::LocalVariable(_)
            | Expression::ArrayLength(_)
            // What statements leave, which set it.
            | Expression::CallResult(_)
            | Expression::AtomicResult { .. }
            | Expression::WorkGroupUniformLoadResult { .. }
            | Expression::SubgroupBallotResult
            | Expression::SubgroupOperationResult { .. } => Spread::Workgroup,
            // A pointer itself is the same everywhere: the places that it leads to are seen where it is indexed.
            Expression::FunctionArgument(index) => {
                match self.is_pointer(frame.function, *index as usize) {
                    true => Spread::Workgroup,
                    false => state.arguments[*index as usize],
                }
            }
            Expression::Load { pointer } => of(pointer).max(self.contents(frame, state, *pointer)),
            Expression::Compose { components, .. } => all(components),
            Expression::Access { base, index } => all(&[*base, *index]),
            Expression::AccessIndex { base, .. } => of(base),
            Expression::Splat { value, .. } => of(value),
            Expression::Swizzle { vector, .. } => of(vector),
            Expression::Unary { expr, .. } | Expression::As { expr, .. } => of(expr),
            Expression::Binary { left, right, .. } => all(&[*left, *right]),
            Expression::Select { condition, accept, reject } => all(&[*condition, *accept, *reject]),
            Expression::Relational { argument, .. } => of(argument),
            Expression::Math { arg, arg1, arg2, arg3, .. } => {
                let further = [arg1, arg2, arg3].into_iter().flatten();
                further.chain([arg]).map(of).max().unwrap_or_default()
            }
            Expression::CooperativeLoad { .. } | Expression::CooperativeMultiplyAdd { .. } => Spread::Subgroup,
            _ => Spread::Invocation,
        }
    }

    fn is_pointer(&self, function: &Function, argument: usize) -> bool {
        self.module.types[function.arguments[argument].ty].inner.pointer_space().is_some()
    }

    /// Notes a fault where invocations arrive at `what` further apart than it allows.
    fn require(&mut self, frame: &Frame<'m>, what: &str, found: Spread, allowed: Spread) {
        if found > allowed {
            let apart = match found {
                Spread::Subgroup => "differs between subgroups",
                _ => "differs between invocations",
            };
            let name = frame.function.name.as_deref().unwrap_or("main");
            self.faults.insert(format!("{what} in `{name}` where control flow {apart}"));
        }
    }

    /// Notes a fault where the place in memory of a matrix is not the same in a subgroup.
    fn require_place(&mut self, frame: &Frame<'m>, data: &naga::CooperativeData) {
        if frame.of(data.pointer).max(frame.of(data.stride)) > Spread::Subgroup {
            let name = frame.function.name.as_deref().unwrap_or("main");
            self.faults.insert(format!(
                "a matrix in `{name}` whose place in memory differs between invocations of a subgroup"
            ));
        }
    }

    fn block(&mut self, frame: &mut Frame<'m>, state: &mut State, block: &'m Block, flow: Spread) -> Exits {
        let mut flow = flow;
        let mut exits = Exits::default();
        for statement in block {
            let of_statement = self.statement(frame, state, statement, flow);
            // What leaves early does not do the rest.
            flow.raise(of_statement.any());
            exits.raise(of_statement);
        }
        exits
    }

    fn statement(
        &mut self,
        frame: &mut Frame<'m>,
        state: &mut State,
        statement: &'m Statement,
        flow: Spread,
    ) -> Exits {
        let mut exits = Exits::default();
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    let expression = &frame.function.expressions[handle];
                    frame.expressions[handle.index()] = self.expression(frame, state, expression);
                    match expression {
                        Expression::CooperativeLoad { data, .. } => {
                            self.require(frame, "a matrix is loaded", flow, Spread::Subgroup);
                            self.require_place(frame, data);
                        }
                        Expression::CooperativeMultiplyAdd { .. } => {
                            self.require(frame, "matrices are multiplied", flow, Spread::Subgroup);
                        }
                        _ => {}
                    }
                }
            }
            Statement::Block(block) => exits = self.block(frame, state, block, flow),
            Statement::If { condition, accept, reject } => {
                let inner = flow.max(frame.of(*condition));
                let mut other = state.clone();
                exits = self.block(frame, state, accept, inner);
                exits.raise(self.block(frame, &mut other, reject, inner));
                state.join(&other);
            }
            Statement::Switch { selector, cases } => {
                let inner = flow.max(frame.of(*selector));
                let before = state.clone();
                frame.breaks.push(State::default());
                state.live = false;
                for case in cases {
                    // One that falls through goes on with what the one before left.
                    state.join(&before);
                    exits.raise(self.block(frame, state, &case.body, inner));
                    if !case.fall_through {
                        let after = std::mem::take(state);
                        frame.breaks.last_mut().expect("pushed above").join(&after);
                    }
                }
                *state = frame.breaks.pop().expect("pushed above");
                exits.break_ = Spread::default();
            }
            Statement::Loop { body, continuing, break_if } => {
                exits = self.loop_(frame, state, (body, continuing, *break_if), flow);
            }
            Statement::Break => {
                exits.break_ = flow;
                frame.breaks.last_mut().expect("a valid module breaks out of something").join(state);
                state.live = false;
            }
            Statement::Continue => {
                exits.continue_ = flow;
                frame.continues.last_mut().expect("a valid module continues a loop").join(state);
                state.live = false;
            }
            Statement::Return { value } => {
                let value = value.map_or(flow, |value| frame.of(value));
                frame.returned.raise(value.max(flow));
                exits.return_ = flow;
                frame.end.join(state);
                state.live = false;
            }
            Statement::ControlBarrier(barrier) => {
                let allowed = match *barrier == naga::Barrier::SUB_GROUP {
                    true => Spread::Subgroup,
                    false => Spread::Workgroup,
                };
                self.require(frame, "a barrier", flow, allowed);
            }
            Statement::MemoryBarrier(_) => {}
            Statement::Store { pointer, value } => {
                let spread = flow.max(frame.of(*pointer)).max(frame.of(*value));
                self.store(frame, state, *pointer, spread);
            }
            Statement::WorkGroupUniformLoad { pointer, .. } => {
                self.require(frame, "a uniform load", flow.max(frame.of(*pointer)), Spread::Workgroup);
            }
            Statement::Call { function: callee, arguments, result } => {
                let callee = &self.module.functions[*callee];
                let pointers: Vec<_> = (0..arguments.len()).map(|i| self.is_pointer(callee, i)).collect();
                let passed = arguments.iter().zip(&pointers).map(|(&argument, &pointer)| match pointer {
                    true => frame.of(argument).max(self.contents(frame, state, argument)),
                    false => frame.of(argument),
                });
                let (passed, privates) = (passed.collect(), state.privates.clone());
                let (returned, end) = self.call(callee, passed, privates, flow);
                state.privates = end.privates;
                for (index, &argument) in arguments.iter().enumerate().filter(|(index, _)| pointers[*index]) {
                    let left = end.arguments[index].max(frame.of(argument));
                    self.store(frame, state, argument, left);
                }
                if let Some(result) = result {
                    frame.expressions[result.index()] = returned;
                }
            }
            Statement::Atomic { result, .. } => {
                if let Some(result) = result {
                    frame.expressions[result.index()] = Spread::Invocation;
                }
            }
            Statement::SubgroupBallot { result, .. } => {
                self.subgroup_operation(frame, *result, true, flow);
            }
            Statement::SubgroupGather { mode, result, .. } => {
                let same = matches!(mode, GatherMode::BroadcastFirst | GatherMode::Broadcast(_));
                self.subgroup_operation(frame, *result, same, flow);
            }
            Statement::SubgroupCollectiveOperation { collective_op, op, result, .. } => {
                let same = *collective_op == CollectiveOperation::Reduce
                    || matches!(op, SubgroupOperation::All | SubgroupOperation::Any);
                self.subgroup_operation(frame, *result, same, flow);
            }
            Statement::CooperativeStore { data, .. } => {
                self.require(frame, "a matrix is stored", flow, Spread::Subgroup);
                self.require_place(frame, data);
            }
            other => {
                self.faults.insert(format!("a statement that no kernel should have: {other:?}"));
            }
        }
        exits
    }

    fn subgroup_operation(
        &mut self,
        frame: &mut Frame<'m>,
        result: Handle<Expression>,
        same: bool,
        flow: Spread,
    ) {
        self.require(frame, "a subgroup operation", flow, Spread::Subgroup);
        frame.expressions[result.index()] = if same { Spread::Subgroup } else { Spread::Invocation };
    }

    /// Follows a loop until another iteration would find nothing new.
    fn loop_(
        &mut self,
        frame: &mut Frame<'m>,
        state: &mut State,
        (body, continuing, break_if): (&'m Block, &'m Block, Option<Handle<Expression>>),
        flow: Spread,
    ) -> Exits {
        let (mut head, mut inner) = (state.clone(), flow);
        loop {
            let (before, flow_before) = (head.clone(), inner);
            frame.breaks.push(State::default());
            frame.continues.push(State::default());
            let mut now = head.clone();
            let mut exits = self.block(frame, &mut now, body, inner);
            now.join(&frame.continues.pop().expect("pushed above"));
            exits.raise(self.block(frame, &mut now, continuing, inner.max(exits.any())));
            inner.raise(exits.any());
            if let Some(condition) = break_if {
                inner.raise(frame.of(condition));
                frame.breaks.last_mut().expect("pushed above").join(&now);
            }
            let after = frame.breaks.pop().expect("pushed above");
            head.join(&now);
            if head == before && inner == flow_before {
                *state = after;
                return Exits { return_: exits.return_, ..Exits::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use epl_runtime::kernel::Needs;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::super::modules::parse;
    use super::uniformity_faults;

    /// A kernel with `body`, and with two variables, of which `n` is the same everywhere and `i` nowhere.
    fn kernel(body: &str) -> String {
        format!(
            "enable wgpu_cooperative_matrix;
            alias Left = coop_mat8x8<f32, A>; alias Right = coop_mat8x8<f32, B>; alias Sum = coop_mat8x8<f32, C>;
            @group(0) @binding(0) var<uniform> n: u32;
            @group(0) @binding(1) var<storage, read_write> y: array<f32>;
            @group(0) @binding(2) var<storage, read> x: array<f32>;
            var<workgroup> tile: array<f32, 256>;
            var<private> kept: u32;
            fn wait() {{ workgroupBarrier(); }}
            fn larger(v: u32) -> bool {{ if v > 3u {{ return true; }} return false; }}
            fn advance(p: ptr<function, u32>, by: u32) {{ *p += by; }}
            @compute @workgroup_size(64)
            fn main(@builtin(local_invocation_index) i: u32, @builtin(subgroup_id) s: u32,
                    @builtin(workgroup_id) group: vec3<u32>) {{ {body} }}"
        )
    }

    fn faults(body: &str) -> Vec<String> {
        let source = kernel(body);
        let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|error| panic!("{body}: {error}"));
        // Without naga's own analysis, which may object first.
        let flags = ValidationFlags::all() - ValidationFlags::CONTROL_FLOW_UNIFORMITY;
        Validator::new(flags, Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&source)));
        uniformity_faults(&module)
    }

    const MULTIPLY: &str = "let a = coopLoadT<Left>(&tile[0], 8u); let b = coopLoadT<Right>(&tile[64], 8u);
        let c = coopLoadT<Sum>(&tile[128], 8u); coopStoreT(coopMultiplyAdd(a, b, c), &tile[192], 8u);";

    #[test]
    fn what_all_invocations_reach_is_left_alone() {
        for body in [
            "workgroupBarrier();",
            "if n > 3u && x[n] > 1.0 { workgroupBarrier(); }",
            "for (var k = group.x; k < n; k += 2u) { tile[i] = y[i]; workgroupBarrier(); y[i] = tile[i + 1u]; }",
            "for (var k = i; k < n; k += 64u) { y[k] = 0.0; } workgroupBarrier();",
            "for (var k = 0u; k < n; k++) { if k == 5u { break; } workgroupBarrier(); }",
            "if i > 3u { y[i] = 0.0; } else { y[i] = 1.0; } wait();",
            "switch n { case 1u: { workgroupBarrier(); } default: {} }",
            "switch i { case 1u: { y[i] = 0.0; break; } default: {} } workgroupBarrier();",
            "if larger(n) { workgroupBarrier(); }",
            "var v = 1u; advance(&v, n); if v > 2u { workgroupBarrier(); }",
            "kept = n; if kept > 2u { workgroupBarrier(); }",
            "if workgroupUniformLoad(&tile)[3] > 1.0 { workgroupBarrier(); }",
            "y[i] = subgroupAdd(y[i]); if s == 0u { y[i] = subgroupAdd(y[i]); }",
            "if subgroupAdd(y[i]) > 1.0 { y[i] = subgroupMax(y[i]); }",
            &format!("if s < 2u {{ {MULTIPLY} }}"),
            "if i == 3u { y[0] = 1.0; return; }",
            // Which of its values a variable has, and of which call a result is.
            "var v = i; y[v] = 0.0; v = n; if v > 3u { wait(); }",
            "if larger(i) { y[i] = 1.0; } if larger(n) { wait(); }",
            "var v = n; loop { if v > 9u { break; } v += 1u; wait(); continuing { break if v == 7u; } } wait();",
            "var v = n; if n > 3u { v = i; return; } if v > 2u { wait(); }",
        ] {
            assert_eq!(faults(body), Vec::<String>::new(), "{body}");
        }
    }

    #[test]
    fn what_some_invocations_do_not_reach_is_found() {
        for (body, part) in [
            ("if y[n] > 1.0 { y[i] = subgroupAdd(y[i]); }", "a subgroup operation in `main`"),
            ("if i < 3u { y[i] = subgroupShuffle(y[i], 1u); }", "a subgroup operation in `main`"),
            ("if i < 3u { y[i] = subgroupBroadcastFirst(y[i]); }", "a subgroup operation in `main`"),
            ("if i < 3u { kept = subgroupBallot(true).x; }", "a subgroup operation in `main`"),
            (&format!("if i < 3u {{ {MULTIPLY} }}"), "matrices are multiplied in `main`"),
            (&format!("if tile[n] > 3.0 {{ {MULTIPLY} }}"), "a matrix is stored in `main`"),
            (&format!("if i == 3u {{ return; }} {MULTIPLY}"), "a matrix is loaded in `main`"),
            ("if i < 3u { wait(); }", "a barrier in `wait`"),
            ("if s == 0u { wait(); }", "where control flow differs between subgroups"),
            ("var v = 0u; if i > 3u { v = 1u; } if v == 1u { wait(); }", "a barrier"),
            ("var v = 1u; advance(&v, i); if v > 2u { wait(); }", "a barrier"),
            ("kept = i; if kept > 2u { wait(); }", "a barrier"),
            ("if larger(i) { wait(); }", "a barrier"),
            ("for (var k = 0u; k < i; k++) { wait(); }", "a barrier"),
            ("for (var k = 0u; k < n; k++) { wait(); if i == k { break; } }", "a barrier"),
            ("for (var k = 0u; k < n; k++) { if i == k { continue; } wait(); }", "a barrier"),
            ("for (var k = 0u; k < n; k++) { if i == k { return; } } wait();", "a barrier"),
            ("var v = n; for (var k = 0u; k < n; k++) { if v > 3u { wait(); } v = i; }", "a barrier"),
            (
                "var v = n; switch n { case 1u: { v = i; break; } default: {} } if v > 3u { wait(); }",
                "a barrier",
            ),
            ("var v = n; loop { if n > 2u { v = i; break; } } if v > 3u { wait(); }", "a barrier"),
            ("loop { wait(); continuing { break if i > 3u; } }", "a barrier"),
            ("var v = vec2(n); v.x = i; if v.y > 3u { wait(); }", "a barrier"),
            ("switch i { case 1u: { wait(); } default: {} }", "a barrier"),
            ("let m = coopLoadT<Sum>(&tile[i], 8u); coopStoreT(m, &tile[0], 8u);", "whose place in memory"),
            ("let m = coopLoadT<Sum>(&tile[0], 8u); coopStoreT(m, &y[0], i);", "whose place in memory"),
        ] {
            let found = faults(body);
            assert!(found.iter().any(|fault| fault.contains(part)), "{body}: {found:?}");
        }
    }
    #[test]
    fn naga_lets_such_modules_through() {
        for body in [
            "if y[n] > 1.0 { y[i] = subgroupAdd(y[i]); }",
            "if i < 3u { wait(); }",
            &format!("if tile[n] > 3.0 {{ {MULTIPLY} }}"),
        ] {
            assert!(parse(&kernel(body), Needs::Matrices(8)).is_ok(), "naga has learned: {body}");
            assert!(!faults(body).is_empty(), "{body}");
        }
    }
}
