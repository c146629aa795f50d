"The audit, against a graph written out by hand; its limits from both sides; and everything left as found"
import copy, gc, math, subprocess, sys, time, weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnotes.branches import residual_branches
from resnotes.causes import limits
from resnotes import evidence
from resnotes.evidence import Evidence, gather, measure_noise
from resnotes.init import he_normal, init_layers
from resnotes.networks import build
from resnotes.report import AuditReport, audit
from resnotes.starts import initialize
from nets import Tiny, images, normed, same, small_resnet, snapshot, strict, transformer

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def he(model):
    "A model started by He's rule"
    init_layers(model, he_normal)
    return model


# --- the audit, against a graph written out by hand --------------------------------------------------------------------------
@pytest.mark.parametrize('inplace', [False, True])
def test_audit_matches_a_graph_by_hand(inplace):
    model, x, y = Tiny(inplace), torch.randn(32, 6), torch.randint(0, 3, (32,))
    a = audit(model, x, y, loss=F.cross_entropy)
    reference = Tiny()
    reference.load_state_dict(model.state_dict())
    loss = F.cross_entropy(reference.double()(x.double()), y)
    grads = torch.autograd.grad(loss, reference.sums)
    stream, chain = x.double(), []
    for r, s, f, g in zip(a.rows, reference.sums, reference.branches, grads):
        assert r.main == pytest.approx(s.square().mean().item(), rel=1e-5) and r.branch == pytest.approx(f.square().mean().item(), rel=1e-5)
        assert r.gradient == pytest.approx(g.square().mean().item(), rel=1e-4)
        chain.append((f.var(0, correction=0).mean()/stream.var(0, correction=0).mean()).item())
        assert r.gain == pytest.approx(math.sqrt(chain[-1]), rel=1e-4)
        stream = s
    assert a.rows[0].share == pytest.approx(chain[0]/(1+chain[0])/(1+chain[1]), rel=1e-4)
    assert a.stem + sum(r.share for r in a.rows) == pytest.approx(1) and a.depth == 2


class Block(nn.Module):
    "Two linear layers and a vector; the sum is written by a function of the module, the input, and the branch"
    def __init__(self, add, n=8, g=.5):
        super().__init__()
        self.a, self.b, self.g, self.add = nn.Linear(n, n), nn.Linear(n, n), nn.Parameter(torch.full((n,), g)), add
    def forward(self, x): return self.add(self, x, lambda x: self.b(self.a(x).tanh()))

def turned_round(s, x, f):
    y = f(x)
    y.add_(x)
    return y

def added_to_a_copy(s, x, f):
    y, x = f(x), x.clone()
    x += y
    return x

ways = {'plus': (lambda s, x, f: x + f(x), 1), 'alpha': (lambda s, x, f: torch.add(x, f(x), alpha=.1), .1), 'by name': (lambda s, x, f: torch.add(other=f(x), input=x), 1),
        'minus': (lambda s, x, f: x - f(x), 1), 'rsub': (lambda s, x, f: torch.rsub(f(x), x, alpha=.3), .3), 'sum': (lambda s, x, f: sum([x, f(x)]), 1),
        'lerp': (lambda s, x, f: torch.lerp(2*x, 2*f(x), .5), 1), 'addcmul': (lambda s, x, f: torch.addcmul(x, s.g, f(x), value=.2), .1),
        'other sums in the line': (lambda s, x, f: (1 + x - 1) + f(x + s.g - s.g + 1 - 1), 1), 'turned round': (turned_round, 1), 'added to a copy': (added_to_a_copy, 1)}

@pytest.mark.parametrize('add, factor', ways.values(), ids=ways)
def test_every_way_to_write_a_sum(add, factor):
    model, x = nn.Sequential(*[Block(add) for _ in range(3)]), torch.randn(64, 8)
    signal = x
    for r, block in zip(audit(model, x).rows, model):
        f = factor*block.b(block.a(signal).tanh())
        assert r.branch == pytest.approx(f.square().mean().item(), rel=1e-4)
        assert r.gain == pytest.approx((f.var(0, correction=0).mean()/signal.var(0, correction=0).mean()).sqrt().item(), rel=1e-4)
        signal = block(signal)
        assert r.main == pytest.approx(signal.square().mean().item(), rel=1e-4)

@pytest.mark.parametrize('size', [12, 8])
def test_features_behind_a_linear_layer_among_channels(size):
    class Next(nn.Module):
        "Depthwise convolution, then linear layers on the channels, as in ConvNeXt"
        def __init__(self):
            super().__init__()
            self.depthwise, self.a, self.b = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6, 24), nn.Linear(24, 6)
        def forward(self, x):
            self.f = self.b(self.a(self.depthwise(x).movedim(1, 3)).tanh()).movedim(3, 1)
            return x + self.f
    model, x = Next(), torch.randn(4, 6, size, size) + 10*torch.randn(6, 1, 1)
    a, variance = audit(model, x), lambda t: t.var((0, 2, 3), correction=0).mean().item()
    assert a.rows[0].gain == pytest.approx(math.sqrt(variance(model.f)/variance(x)), rel=1e-4)

def test_shares_of_parallel_branches_add_up():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            nn.init.zeros_(self.c.weight)
            nn.init.zeros_(self.c.bias)
        def forward(self, x):
            x = x + (self.a(x) + self.b(x))
            return x + self.c(x)
    a = audit(model := Parallel(), x := torch.randn(40, 6))
    variance = lambda t: t.var(0, correction=0).mean().item()
    parts = [variance(t) for t in (x, model.a(x), model.b(x))]
    assert len(a.rows) == 3 and a.stem + sum(r.share for r in a.rows) == pytest.approx(1) and a.rows[2].branch == 0
    assert [a.stem, a.rows[0].share, a.rows[1].share] == pytest.approx([p/sum(parts) for p in parts], rel=1e-4)


# --- all is left as it was ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('make,x', [(normed, images()), (transformer, torch.randn(3, 5, 16)), (small_resnet, images())])
@pytest.mark.parametrize('training', [True, False])
def test_audit_leaves_everything(make, x, training):
    model = make().train(training)
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    assert isinstance(audit(model, x), AuditReport)
    with torch.no_grad(): audit(model, x)
    with torch.inference_mode(): audit(model, x)
    assert same(before, snapshot(model))

def test_audit_leaves_everything_after_an_error():
    model, x = normed(), images()
    before = snapshot(model)
    def broken(out): raise RuntimeError('no loss today')
    with pytest.raises(RuntimeError, match='no loss today'): audit(model, x, loss=broken)
    with model[5].register_forward_pre_hook(lambda m, args: 1/0), pytest.raises(ZeroDivisionError): audit(model, x)
    assert same(before, snapshot(model))

def test_dropout_is_active_in_training_and_its_random_numbers_are_given_back():
    model, x = transformer(dropout=.5), torch.randn(3, 5, 16)
    state = torch.random.get_rng_state()
    assert [r.main for r in audit(model, x).rows] == [r.main for r in audit(model, x).rows]
    assert torch.equal(state, torch.random.get_rng_state()) and audit(model, x).rows[0].main != audit(model.eval(), x).rows[0].main

def test_a_model_all_frozen_can_be_audited():
    model = strict()
    reference = audit(model, x := images())
    frozen = audit(model.requires_grad_(False), x)
    assert [r.gradient for r in frozen.rows] == [r.gradient for r in reference.rows] and frozen.rows[0].gradient > 0

def test_channels_last_and_non_contiguous_inputs_give_the_same():
    model, x = strict(), images(4)
    reference = audit(model, x).to_frame()[['main', 'branch', 'gradient', 'share']].to_numpy()
    wide = torch.randn(4, 1, 8, 16)
    wide[..., ::2] = x
    for m, v in ((copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)), (model, wide[..., ::2])):
        assert audit(m, v).to_frame()[['main', 'branch', 'gradient', 'share']].to_numpy() == pytest.approx(reference, rel=1e-3)

@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))])
def test_autocast_and_half_precision_stay_close(device):
    model, x = strict().to(device), images().to(device)
    reference = audit(model, x)
    with torch.autocast(device, torch.bfloat16): mixed = audit(model, x)
    half = audit(copy.deepcopy(model).bfloat16(), x.bfloat16())
    for other in (mixed, half):
        for r, s in zip(reference.rows, other.rows): assert s.main == pytest.approx(r.main, rel=.1) and s.gradient == pytest.approx(r.gradient, rel=.3)
    with torch.autocast(device, torch.bfloat16): initialize(model, x, rule='balanced')
    assert audit(model, x).stem == pytest.approx(1/5, rel=.1)

@pytest.mark.parametrize('n,size', [(1, 8), (1, 1), (5, 1)])
def test_one_example_and_one_pixel(n, size):
    a = audit(strict(), torch.randn(n, 1, size, size))
    assert len(a.rows) == 4 and all(math.isfinite(r.main) and r.gradient >= 0 for r in a.rows)

def test_tokens_lists_and_names():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.encoder = nn.Embedding(9, 16), transformer()
        def forward(self, tokens, scale=None): return {'logits': self.encoder(self.embed(tokens)*scale), 'other': [torch.zeros(2)]}
    a = audit(Model(), torch.randint(0, 9, (3, 5)), scale=torch.ones(16))
    assert len(a.rows) == 4 and a.rows[0].gradient > 0

def test_more_than_float32_can_square():
    model = strict(40)
    with torch.no_grad():
        for k in range(1, 41): model[k].branch.conv2.weight.mul_(30)
    a = audit(model, images())
    assert a.rows[-1].main > 1e39 and math.isfinite(a.rows[-1].main) and any('grows' in f for f in a.findings)


# --- findings ----------------------------------------------------------------------------------------------------------------
def test_findings_name_what_is_wrong():
    says, notes = (lambda a, text, of=of: any(text in f for f in getattr(a, of)) for of in ('findings', 'notes'))
    deep = he(normed(40))
    plateau = audit(deep, x := images(16))
    assert [f.cause for f in plateau.findings] == ['input_is_forgotten'] and says(plateau, 'expect a plateau') and plateau.noise > 40
    initialize(deep, x, rule='harmonic')
    assert not audit(deep, x).findings
    assert notes(audit(deep.eval(), x), 'running statistics')
    explosive = he(strict(40))
    assert [f.cause for f in audit(explosive, x).findings] == ['branches_add_up']
    initialize(explosive, x, rule='skipinit')
    assert notes(audit(explosive, x), '40 of 40 branches add nothing') and not audit(explosive, x).findings
    initialize(explosive, x, rule='fixup')
    assert notes(audit(explosive, x), 'no gradient comes back') and 'no gradient comes back' in repr(audit(explosive, x))
    with torch.no_grad(): explosive[3].branch.conv2.weight.fill_(math.inf)
    assert audit(explosive, x).findings[0].cause == 'weight_not_finite' and '3.branch.conv2.weight' in audit(explosive, x).findings[0]

def test_dead_and_saturated_units_are_found():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            nn.init.constant_(self.a.bias[:6], -100), nn.init.zeros_(self.a.bias[6:])
            nn.init.constant_(self.b.bias, 50)
        def forward(self, x):
            x = x + self.b(self.a(x).relu())
            return x + torch.sigmoid(self.b(x))
    a = audit(Gated(), torch.randn(64, 8))
    assert a.rows[0].dead == .75 and math.isnan(a.rows[0].saturated) and a.rows[1].saturated > .9
    assert any('75%' in f for f in a.findings) and any('flat' in f for f in a.findings)

class Line(nn.Module):
    "Branches added in the model's own forward"
    def __init__(self, n=3, width=4):
        super().__init__()
        self.a, self.b = (nn.ModuleList(nn.Linear(width, width) for _ in range(n)) for _ in 'ab')
    def forward(self, x):
        for a, b in zip(self.a, self.b): x = x + b(a(x).relu())
        return x

def test_additions_of_the_model_itself_have_its_name():
    model, x = Line(), torch.randn(5, 4)
    found, a = residual_branches(model, x), audit(model, x)
    assert [b.module for b in found] == ['']*3 and [row[1] for row in found.table()[1]] == ['Line']*3 and 'Line' in repr(found[1:])
    assert [r.module for r in a.rows] == ['Line']*3 and 'Line' in repr(a) and [r.module for r in audit(nn.Sequential(model), x).rows] == ['0']*3

def test_where_no_share_can_be_told_none_is_shown():
    "One example of a flat layer varies with nothing"
    lone = audit(Line(2), torch.randn(1, 4))
    assert math.isnan(lone.stem) and 'nan' not in repr(lone).split('\n')[0] and 'share of the stem not known' in repr(lone)

@pytest.mark.parametrize('work', [residual_branches, audit, partial(initialize, rule='skipinit'), partial(initialize, rule='gpt2', rest='he_normal')],
                         ids=['residual_branches', 'audit', 'skipinit', 'gpt2'])
def test_work_grows_as_the_depth(work):
    "Eight times the depth takes about eight times the processor's time; quadratic work would take sixty-four times"
    def seconds(n, tries):
        model, x, taken = Line(n), torch.randn(3, 4), []
        for _ in range(tries):
            gc.collect()
            start = time.process_time()
            work(model, x)
            taken.append(time.process_time() - start)
        return min(taken)
    seconds(9, 1)
    assert seconds(1600, 1) < 30*seconds(200, 3)

def test_ten_thousand_branches_leave_in_peace():
    "A graph this deep is taken apart without a crash; in a process of its own"
    code = ('import torch; torch.set_num_threads(1); from test_evidence import Line, audit, residual_branches, initialize; model, x = Line(10000), torch.randn(2, 4)\n'
            'assert residual_branches(model, x).depth == 10000; initialize(model, x, rule="gpt2"); print(len(audit(model, x).rows))')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert run.returncode == 0 and run.stdout.strip() == '10000', (run.returncode, run.stderr[-500:])

def test_nothing_stands_out_in_a_good_start():
    model, x = strict(30), images(16)
    initialize(model, x, rule='depth_scaled_normal')
    a = audit(model, x)
    assert a.findings == [] and 'nothing stands out' in repr(a) and 'nothing stands out' in a._repr_html_() and '…' in repr(a)

def test_frame_and_plot():
    import matplotlib.pyplot as plt
    a = audit(strict(), images())
    assert list(a.to_frame().columns) == ['module', 'main', 'branch', 'gain', 'share', 'gradient', 'dead', 'saturated', 'norm', 'size'] and len(a.to_frame()) == 4
    axs = a.plot(label='here')
    assert [len(ax.lines) for ax in axs] == [1, 1, 1] and list(axs[1].lines[0].get_ydata()) == [r.share for r in a.rows]
    assert a.plot(axs) is axs and len(axs[0].lines) == 2
    plt.close('all')


# --- limits, each from both sides ---------------------------------------------------------------------------------------------
class Turned(nn.Module):
    "s x + g J x with a quarter turn J, which is orthogonal to x: squares and variances grow by s² + g², forward and back"
    def __init__(self, s, g, n=8, more=0.):
        super().__init__()
        self.s, self.g, self.turn = s, g, nn.Linear(n, n, bias=False)
        self.turn.weight.data = (1 + more)*torch.block_diag(*[torch.tensor([[0., -1.], [1., 0.]])]*(n//2))
    def forward(self, x): return self.s*x + self.g*self.turn(x)

def turned(factor, n=11):
    "Blocks over which the second moment grows by this factor from the first sum to the last"
    r = factor**(1/(n - 1))
    s, g = (1, math.sqrt(r - 1)) if r > 1 else (.8*math.sqrt(r), .6*math.sqrt(r))
    return nn.Sequential(*[Turned(s, g, more=1e-5*i) for i in range(n)])   # no two are equal

def says(a, text): return any(text in f for f in a.findings)

def causes_of(model, x): return [f.cause for f in audit(model, x).findings]

@pytest.mark.parametrize('factor, cause', [(1e3, 'branches_add_up'), (1e-4, 'gradient_fades')])
def test_growth_and_gradients_are_judged_at_their_limits(factor, cause):
    inside, outside = (audit(turned(factor**p), torch.randn(64, 8)) for p in (.97, 1.03))
    for a, p in ((inside, .97), (outside, 1.03)):
        assert a.rows[-1].main/a.rows[0].main == pytest.approx(factor**p, rel=1e-3) and a.gradient_ratio == pytest.approx(factor**p, rel=1e-3)
    assert not inside.findings and [f.cause for f in outside.findings] == [cause]

def test_where_a_norm_stands_between_nothing_grows():
    "The signal jumps a millionfold at the norm; the additions around it add little"
    blocks = [Turned(1, .1), nn.LayerNorm(8), *[Turned(1, .1, more=1e-5*i) for i in range(3)]]
    assert causes_of(nn.Sequential(*blocks), 1e-3*torch.randn(64, 8)) == ['input_scale']

def test_what_a_gradient_finding_says():
    assert f'is {12500**-.5:.2g} of that at the last' in audit(turned(1/12500), torch.randn(64, 8)).findings[-1]

def constant(values, activation, n=8):
    "A block whose activation has these arguments, whatever comes in"
    model = Block(lambda s, x, f: x + s.b(activation(s.a(x))))
    nn.init.zeros_(model.a.weight)
    with torch.no_grad(): model.a.bias.copy_(torch.tensor(values))
    return model

@pytest.mark.parametrize('activation, low, high, name, text', [
    (torch.relu, 1., -1., 'dead', 'of the features are closed for the whole batch'),
    (torch.tanh, 0., 5., 'saturated', 'of the values of a sigmoid or tanh are flat'),
    (torch.sigmoid, 0., -9., 'saturated', 'of the values of a sigmoid or tanh are flat')])
def test_idle_units_are_judged_at_six_tenths(activation, low, high, name, text):
    half, more = (audit(constant([high]*k + [low]*(8 - k), activation), torch.randn(16, 8)) for k in (4, 5))
    assert getattr(half.rows[0], name) == .5 and getattr(more.rows[0], name) == .625
    assert not says(half, text) and says(more, f'62% {text}')

@pytest.mark.parametrize('activation, argument', [(torch.tanh, math.atanh), (torch.sigmoid, lambda t: math.log((1 + t)/(1 - t)))])
def test_flat_is_less_than_a_twentieth_of_the_steepest_slope(activation, argument):
    slopes = [.01, .03, .047, .053, .1, .2, .5, .9]          # relative: 1 - t² for a tanh of t, and for a sigmoid of (1 + t)/2
    arguments = [sign*argument(math.sqrt(1 - slope)) for slope, sign in zip(slopes, [1, -1]*4)]
    z = torch.tensor(arguments, requires_grad=True)
    activation(z).sum().backward()
    assert (z.grad/(1 if activation is torch.tanh else .25)).tolist() == pytest.approx(slopes, rel=1e-3)
    assert audit(constant(arguments, activation), torch.randn(5, 8)).rows[0].saturated == 3/8

@pytest.mark.parametrize('name, value, model, cause', [
    ('growth', 1e2, turned(500.), 'branches_add_up'), ('gradient', 1e2, turned(1/500.), 'gradient_fades'),
    ('idle', .4, constant([-1.]*4 + [1.]*4, torch.relu), 'units_are_dead')])
def test_limits_can_be_changed(monkeypatch, name, value, model, cause):
    assert cause not in causes_of(model, torch.randn(64, 8))
    monkeypatch.setitem(limits, name, value)
    assert cause in causes_of(model, torch.randn(64, 8))


# --- nothing stays in memory --------------------------------------------------------------------------------------------------
def alive(): return sum(issubclass(type(o), (nn.Module, torch.Tensor)) for o in gc.get_objects())

def broken(out): raise RuntimeError('no loss today')

def audited(times, loss=None):
    "Audits of fresh models, and whether anything is left of each"
    gone, reports = [], []
    for _ in range(times):
        model = normed(2)
        gone += [weakref.ref(model), weakref.ref(next(model.parameters()))]
        if loss is None: reports.append(audit(model, images()))
        else:
            with pytest.raises((RuntimeError, ValueError)): audit(model, images(), loss=loss)
        del model
    return [g() is None for g in gone], reports

@pytest.mark.parametrize('loss', [None, broken, lambda out: out], ids=['whole', 'failed', 'refused'])
def test_audited_models_leave_memory_without_the_collector(loss):
    "A hundred calls leave as many objects as none"
    audited(1, loss)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        gone, reports = audited(100, loss)
        assert all(gone) and alive() <= before and len(reports) == (100 if loss is None else 0)
    finally: gc.enable()


# --- refusals ----------------------------------------------------------------------------------------------------------------
def test_unusable_input_is_named():
    model, x = strict(), images()
    before = snapshot(model)
    for args, error, text in [((), ValueError, 'must hold a tensor'), ((3,), ValueError, 'must hold a tensor'),
                              ((torch.zeros(0, 1, 8, 8),), ValueError, 'must not be empty'),
                              ((x.to('meta'),), ValueError, 'must be on the device of the model')]:
        with pytest.raises(error, match=text): audit(model, *args)
    with pytest.raises(TypeError, match='model must be an nn.Module, got int'): audit(3, x)
    assert same(before, snapshot(model))

class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
    def forward(self, x): return x + self.a(x)

@pytest.mark.parametrize('call, error, text', [
    (lambda m, x: audit(copy.deepcopy(m).to('meta'), x.to('meta')), ValueError, 'model must have numbers in its weights'),
    (lambda m, x: audit(m, x, loss=3), TypeError, 'loss must be a function of the output and the target, or None, got 3'),
    (lambda m, x: audit(m, x, loss=lambda out: out), ValueError, 'loss must return one number'),
    (lambda m, x: audit(Whole(), torch.randn(3, 8)), ValueError, 'model must return real numbers')])
def test_what_cannot_be_measured_is_named(call, error, text):
    model = strict()
    before = snapshot(model)
    with pytest.raises(error, match=text): call(model, images())
    after = snapshot(model)
    assert same(before, (after[0], before[1], *after[2:]))      # the call drew its example

class Whole(Scripted):
    "Complex numbers come out"
    def forward(self, x): return torch.view_as_complex(super().forward(x).view(-1, 4, 2))


# --- at the start of training ------------------------------------------------------------------------------------------------
def test_audit_at_start_warns_once_and_changes_nothing():
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    import fastai.callback.progress      # gives learners `no_bar`
    from resnotes.callbacks import AuditAtStart
    from resnotes.data import digits
    def trained(*cbs):
        torch.manual_seed(0)
        learn = Learner(digits(), he(strict(30)), loss_func=CrossEntropyLossFlat(), cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-6)
        return learn
    plain = trained()
    with pytest.warns(UserWarning, match='grows') as warned: learn = trained(AuditAtStart())
    assert sum('grows' in str(w.message) for w in warned) == 1 and len(learn.audit_at_start.record()['share']) == 30
    assert all(torch.equal(p, q) for p, q in zip(plain.model.parameters(), learn.model.parameters()))
    resumed = AuditAtStart()
    resumed.load_state_dict(learn.audit_at_start.state_dict())
    assert trained(resumed).audit_at_start.report is None and resumed.record() == learn.audit_at_start.record()

def test_audit_at_start_takes_networks_without_branches():
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    import fastai.callback.progress      # gives learners `no_bar`
    from resnotes.callbacks import AuditAtStart
    from resnotes.data import digits
    learn = Learner(digits(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)), loss_func=CrossEntropyLossFlat(), cbs=AuditAtStart())
    with pytest.warns(UserWarning, match='cross_entropy gets rows that add up to one'), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-6)
    assert learn.audit_at_start.record()['share'] == []

# --- parallel branches that are scaled together ------------------------------------------------------------------------------
@pytest.mark.parametrize('join', [lambda x, f, g: x + .5*(f + g), lambda x, f, g: x + (.25*(f + g)).view(64, 6)*2, lambda x, f, g: x + torch.stack([f, g]).mean(0)])
def test_what_parallel_branches_add_is_measured_behind_their_factor(join):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        def forward(self, x): return self.head(join(x, self.a(x).relu(), self.b(x).tanh()))
    torch.manual_seed(0)
    net, x = Two(), torch.randn(64, 6)
    rows, first, second = gather(net, x).rows, .5*net.a(x).relu(), .5*net.b(x).tanh()
    assert [r.branch for r in rows] == pytest.approx([first.square().mean().item(), second.square().mean().item()], rel=1e-5)
    spread = lambda t: t.var(0, correction=0).mean().item()
    assert rows[0].gain == pytest.approx((spread(first)/spread(x))**.5, rel=1e-4)
    assert rows[1].gain == pytest.approx((spread(second)/(spread(x) + spread(first)))**.5, rel=1e-4)

def test_a_loss_within_the_model_is_no_branch_of_it():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 6)
        def forward(self, x): return (self.b(self.a(x).relu()) - x).square().mean()
    ev = gather(Auto(), torch.randn(16, 6), loss=lambda out: out)
    assert len(ev.rows) == ev.depth == 0 and [r.module for r in ev.layers] == ['a', 'b']

# edges of what is measured

def test_numbers_without_features_are_no_sums_of_signals():
    gauge = evidence._Gauge()
    for ndim, measured in ((1, False), (2, True)):
        x = torch.ones((3,)*ndim)
        gauge.before_sum(None, x, x)
        assert (gauge.terms is not None) == measured
    gauge.before_sum(None, x.long(), x)
    assert gauge.terms is None

class Weighed(nn.Module):
    "Scores times a gate per example, which is flat"
    def __init__(self): super().__init__(); self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
    def forward(self, x):
        h = self.body(x)
        return self.head(h)*(99 + h.mean(1)).tanh()[:, None]

def test_a_number_per_example_is_no_layer_of_units():
    torch.manual_seed(0)
    ev = gather(Weighed(), torch.randn(32, 8))
    assert [math.isnan(r.saturated) for r in ev.layers] == [True, True]

def test_noise_cannot_be_told_where_the_input_has_no_numbers_to_shake():
    torch.manual_seed(0)
    words, pixels = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    assert math.isnan(measure_noise(words, (torch.randint(0, 9, (16, 5)),), {})) and math.isnan(measure_noise(pixels, (torch.randn(8),), {}))
    assert measure_noise(pixels, (torch.randn(16, 8),), {}) == pytest.approx(1, abs=.2)

@pytest.mark.parametrize('normed, said', [(4, False), (5, True)])
def test_half_of_the_branches_behind_norms_are_a_main_path_of_norms(normed, said):
    rows = [SimpleNamespace(norm=i < normed) for i in range(11)]
    ev = Evidence(None, (), {}, (), None, None, set(), branches=[SimpleNamespace(inside=None)]*11, rows=rows)
    assert ev.norms_on_top == said and ev.weighed == 0

def test_an_audit_that_ends_before_the_first_layer_has_an_empty_table():
    report = audit(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.randn(1, 3))
    assert len(report.to_frame()) == 0 and [f.cause for f in report.findings] == ['norm_of_few']
