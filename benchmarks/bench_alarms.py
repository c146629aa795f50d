"""What `audit` says of default starts, which train: every finding here is suspect.

    python benchmarks/bench_alarms.py [RECORD.jsonl [PART OF A NAME]]
    python benchmarks/bench_alarms.py judge JUDGED.jsonl LIBRARY/NAME/CAUSE ...
    python benchmarks/bench_alarms.py ailments RECORD.jsonl

Networks of timm, transformers and torch, in training mode, on small batches of noise and, where a size fits, of real digits. Libraries that
are missing are left out; weights are random, nothing is downloaded. One line per network is printed and, with a file name, appended there; networks
that stand in it already are not audited again.

`judge` says whether a finding holds up: the network is trained for fifty steps on real digits as it is found and with the remedy followed, in five
seeds. It holds up if the remedy reaches the lower loss in all five. What was mended since is judged by the version of the library that said it. `ailments` is the other side: every ailment of the book in eight seeds, and
whether it is named and its healthy twin passed over. Both append to a record and do nothing twice."""
import json, math, os, statistics, sys, time, warnings

import torch
import torch.nn.functional as F
from timing import here, load
from torch import nn

from resnotes.ailments import ailments, make_case
from resnotes.networks import build
from resnotes.report import audit
from resnotes.starts import initialize

warnings.filterwarnings('ignore')
torch.set_num_threads(1)

TIMM = '''resnet18 resnet26d resnet50 seresnet18 resnext26ts skresnet18 resnest14d res2net50_26w_4s ecaresnet26t resnetv2_50 nf_resnet26 nf_regnet_b0 dm_nfnet_f0
eca_nfnet_l0 densenet121 vgg11 vgg11_bn vgg16 vgg16_bn mobilenetv2_050 mobilenetv2_100 mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv4_conv_small
efficientnet_b0 efficientnet_lite0 tf_efficientnetv2_b0 mnasnet_100 fbnetc_100 fbnetv3_b spnasnet_100 ghostnet_050 ghostnet_100 hardcorenas_a mixnet_s tinynet_e
regnetx_002 regnety_002 regnetz_b16 rexnet_100 semnasnet_050 lcnet_050 xception41 legacy_xception inception_v3 inception_v4 inception_resnet_v2 dpn48b dla34
dla46_c hrnet_w18_small selecsls42b cspresnet50 cspdarknet53 darknet53 darknetaa53 repvgg_a0 repghostnet_050 mobileone_s0 repvit_m0_9 levit_128s convnext_atto
convnextv2_atto convnext_tiny convmixer_768_32 poolformer_s12 poolformerv2_s12 metaformer_ppff_1_s caformer_s18 convformer_s18 resmlp_12_224 mixer_s32_224
gmlp_ti16_224 gmixer_12_224 vit_tiny_patch16_224 vit_small_patch32_224 deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224
xcit_nano_12_p16_224 crossvit_tiny_240 convit_tiny coat_lite_tiny pit_ti_224 tnt_s_legacy_patch16_224 visformer_tiny volo_d1_224 swin_tiny_patch4_window7_224
swinv2_cr_tiny_224 maxvit_tiny_rw_224 coatnet_nano_rw_224 twins_svt_small pvt_v2_b0 edgenext_xx_small mobilevit_xxs mobilevitv2_050 efficientformer_l1
efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 fasternet_t0 focalnet_tiny_srf gcvit_xxtiny hgnet_tiny hgnetv2_b0 hiera_tiny_224 inception_next_tiny
mvitv2_tiny nest_tiny nextvit_small sequencer2d_s starnet_s1 tiny_vit_5m_224 vovnet39a ese_vovnet19b_dw ghostnetv2_100 eva02_tiny_patch14_224 davit_tiny
bat_resnext26ts botnet26t_256 halonet26t lambda_resnet26t gernet_s res2next50 tresnet_m wide_resnet50_2 resnetblur50 ese_vovnet39b mambaout_femto rdnet_tiny
swiftformer_xs shvit_s1 csatv2 naflexvit_base_patch16_gap'''.split()

TINY = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
TEXT = {
    'BertForSequenceClassification': TINY, 'BertForMaskedLM': TINY, 'RobertaForMaskedLM': TINY, 'ElectraForPreTraining': dict(TINY, embedding_size=32),
    'AlbertForMaskedLM': dict(TINY, embedding_size=16), 'DistilBertForMaskedLM': dict(vocab_size=99, dim=32, hidden_dim=64, n_layers=3, n_heads=4),
    'DebertaV2ForMaskedLM': dict(TINY, relative_attention=True, pos_att_type=['p2c', 'c2p']), 'GPT2LMHeadModel': dict(vocab_size=99, n_embd=32, n_layer=3, n_head=4),
    'OPTForCausalLM': dict(vocab_size=99, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32),
    'BloomForCausalLM': dict(vocab_size=99, hidden_size=32, n_layer=3, n_head=4), 'GPTNeoXForCausalLM': TINY,
    'GPTJForCausalLM': dict(vocab_size=99, n_embd=32, n_layer=3, n_head=4, rotary_dim=4), 'LlamaForCausalLM': TINY, 'MistralForCausalLM': dict(TINY, num_key_value_heads=2),
    'GemmaForCausalLM': dict(TINY, num_key_value_heads=2, head_dim=8), 'Qwen2ForCausalLM': dict(TINY, num_key_value_heads=2),
    'MixtralForCausalLM': dict(TINY, num_key_value_heads=2, num_local_experts=4), 'PhiForCausalLM': TINY,
    'MambaForCausalLM': dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, state_size=4), 'XLNetLMHeadModel': dict(vocab_size=99, d_model=32, n_layer=3, n_head=4, d_inner=64),
    'T5ForConditionalGeneration': dict(vocab_size=99, decoder_start_token_id=0, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4),
    'BartForConditionalGeneration': dict(vocab_size=99, d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
                                         encoder_ffn_dim=64, decoder_ffn_dim=64)}


def classes(n): return torch.arange(n)%10


def of_timm():
    try: timm = load('timm')
    except Exception as e: return print(f'timm left out: {e}')
    for name in TIMM:
        side = 240 if '240' in name else 256 if '256' in name else 224
        if not name.endswith(('224', '240', '256')): side = 96
        def make(name=name, side=side):
            model = timm.create_model(name, num_classes=10)
            want = model.default_cfg.get('fixed_input_size')
            side_ = model.default_cfg['input_size'][-1] if want else side
            return model, (torch.randn(8 if side_ < 200 else 4, 3, side_, side_),), F.cross_entropy
        yield 'timm', name, make


def of_transformers():
    try: import transformers
    except Exception as e: return print(f'transformers left out: {e}')
    for name, settings in TEXT.items():
        def make(name=name, settings=settings):
            cls = getattr(transformers, name)
            model = cls(cls.config_class(**settings))
            tokens = dict(input_ids=torch.randint(3, 99, (8, 12)))
            labels = tokens['input_ids']
            if 'Sequence' in name: labels = torch.arange(8)%2
            if 'PreTraining' in name: labels = torch.randint(0, 2, (8, 12))
            return model, (), dict(tokens, labels=labels)
        yield 'transformers', name, make


def mlp(depth, curve=nn.ReLU, norm=None, width=64):
    layers, inputs = [nn.Flatten()], 64
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), *([norm(width)] if norm else []), curve()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


class Recurrent(nn.Module):
    def __init__(self, kind, layers):
        super().__init__()
        self.rnn, self.head = kind(8, 32, layers, batch_first=True), nn.Linear(32, 10)
    def forward(self, x): return self.head(self.rnn(x[:, 0])[0][:, -1])


class Encoder(nn.Module):
    def __init__(self, layers, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.embed, self.encoder, self.head = nn.Linear(8, 32), nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(32, 10)
    def forward(self, x): return self.head(self.encoder(self.embed(x[:, 0])).mean(1))


def real_digits():
    try: from sklearn.datasets import load_digits
    except ImportError: return torch.randn(64, 1, 8, 8), torch.arange(64)%10
    data = load_digits()
    return torch.tensor(data.images[:64, None]/16, dtype=torch.float32), torch.tensor(data.target[:64])


def of_hand():
    "Networks of torch and of this book, on real digits"
    nets = {f'mlp {d} {c.__name__}': (lambda d=d, c=c: mlp(d, c)) for d in (1, 2, 3, 5) for c in (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU)}
    nets |= {f'mlp {d} {n.__name__}': (lambda d=d, n=n: mlp(d, norm=n)) for d in (2, 5, 10) for n in (nn.BatchNorm1d, nn.LayerNorm)}
    nets |= {f'{k.__name__} {n}': (lambda k=k, n=n: Recurrent(k, n)) for k in (nn.RNN, nn.LSTM, nn.GRU) for n in (1, 2)}
    nets |= {f'encoder {n} {"pre" if f else "post"}': (lambda n=n, f=f: Encoder(n, f)) for n in (1, 2, 4, 6) for f in (True, False)}
    nets |= {f'tower {d} {r}': (lambda d=d: build('tower', depth=d)) for d in (4, 8) for r in ('',)}
    for name, make in nets.items(): yield 'by hand', name, lambda make=make: (make(), real_digits(), F.cross_entropy)


def audited(make):
    "Findings and notes of one network, and seconds"
    model, batch, loss = make()
    model.train()
    start = time.process_time()
    if isinstance(loss, dict): report = audit(model, loss=lambda out: out.loss, **loss)
    else:
        if len(batch) == 1: batch = (*batch, classes(len(batch[0])))
        def first(out, y): return loss(out[0] if isinstance(out, tuple) else out, y)
        report = audit(model, *batch, loss=first)
    return report, time.process_time() - start


def read(record): return [json.loads(line) for line in open(record)] if record and os.path.exists(record) else []

def keep(record, line):
    if not record: return
    with open(record, 'a') as f: f.write(json.dumps(line) + '\n')


# --- does a finding hold up? -------------------------------------------------------------------------------------------------
RATES, STEPS, SEEDS, HELD_OUT = (3e-4, 3e-3), 50, 5, 64
SIZES = {'convmixer_768_32': (4, 14)}   # fewer and smaller images, where a step at full size takes seconds; the finding must be there at this size too

def digits(side):
    "All digits as colour images of this size around unit scale, and their classes"
    from sklearn.datasets import load_digits
    data = load_digits()
    x = torch.tensor(data.images[:, None]/8 - 1, dtype=torch.float32)
    return lambda k: F.interpolate(x[k], size=side, mode='bilinear').expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target)


def grouped(model, x, y, finding):
    "nn.GroupNorm in place of the batch norm that the finding names"
    outer, _, inner = finding.where.rpartition('.')
    norm = model.get_submodule(finding.where)
    setattr(model.get_submodule(outer), inner, nn.GroupNorm(1, norm.num_features))

def pasted(model, x, y, finding): exec(finding.remedy, dict(model=model, x=x, y=y, nn=nn, initialize=initialize))

FOLLOW = {'norm_of_few': grouped}   # causes whose remedy is no line to paste


def findings(model, x, y, cause): return [f for f in audit(model, x, y, loss=first_of).findings if f.cause == cause]

def first_of(out, y): return F.cross_entropy(out[0] if isinstance(out, tuple) else out, y)


def trained(make, images, labels, batch, cause, follow, lr, seed):
    "Mean loss of the last ten steps, that of inference on other images, and how many findings of this cause were left at the start"
    torch.manual_seed(seed)
    model, order, losses, left = make()[0].train(), torch.randperm(len(labels) - HELD_OUT), [], 0
    def drawn(k): return order[torch.arange(k*batch, (k + 1)*batch)%len(order)]
    x, y = images(drawn(STEPS)), labels[drawn(STEPS)]      # a batch that training does not begin with
    for _ in range(9 if follow else 0):                    # several layers may want the same line
        if not (said := findings(model, x, y, cause)): break
        follow(model, x, y, said[0])
    left = len(findings(model, x, y, cause))
    if not (follow or left): raise ValueError(f'the start must have a finding of {cause}, got none in seed {seed}: nothing to judge')
    opt = torch.optim.AdamW(model.parameters(), lr)
    for k in range(STEPS):
        value = first_of(model(images(drawn(k))), labels[drawn(k)])
        opt.zero_grad()
        value.backward()
        opt.step()
        losses.append(value.item())
    model.eval()
    with torch.no_grad(): seen = first_of(model(images(slice(-HELD_OUT, None))), labels[-HELD_OUT:]).item()
    return statistics.mean(losses[-10:]), seen, left


def judged(library, name, cause):
    "One record: the network as found and with the remedy followed, each at the better of two rates by the mean over all seeds"
    make = next(make for lib, n, make in (*(of_timm() or ()),) if (lib, n) == (library, name))
    start, shape = time.perf_counter(), make()[1][0].shape
    batch, side = SIZES.get(name, (shape[0], shape[-1]))
    images, labels = digits(side)
    line = dict(library=library, name=name, cause=cause, side=side, batch=batch, steps=STEPS, rates=RATES)
    for arm, follow in (('found', None), ('followed', FOLLOW.get(cause, pasted))):
        runs = {lr: [trained(make, images, labels, batch, cause, follow, lr, seed) for seed in range(SEEDS)] for lr in RATES}
        means = {lr: statistics.mean(loss for loss, *_ in tries) for lr, tries in runs.items()}
        line[f'{arm}_rate'] = best = min(RATES, key=lambda lr: means[lr] if math.isfinite(means[lr]) else math.inf)
        for what, values in zip(('loss', 'inference', 'said'), zip(*runs[best])): line[f'{arm}_{what}'] = [round(v, 4) for v in values]
        line[f'{arm}_means'] = [round(means[lr], 4) for lr in RATES]
    for what, key in (('loss', 'better'), ('inference', 'better_inference')):
        line[key] = sum(b < a for a, b in zip(line[f'found_{what}'], line[f'followed_{what}']))
    return line | dict(holds=line['better'] == SEEDS, seconds=round(time.perf_counter() - start), preset='fifty steps on digits, one thread', **here())


def judge(record, *findings):
    "Each LIBRARY/NAME/CAUSE that the record lacks"
    done = {(l['library'], l['name'], l['cause']) for l in read(record)}
    for finding in findings:
        if (which := tuple(finding.split('/'))) in done: continue
        keep(record, line := judged(*which))
        print(json.dumps(line), flush=True)


# --- is every ailment named, and its twin passed over? ------------------------------------------------------------------------
def causes_of(case): return [f.cause for f in audit(case.model, case.x, case.y, loss=case.loss, optimizer=case.optimizer).findings]

def try_ailments(record=None, seeds=8):
    "One line per ailment: in how many seeds it is named first or second, and its healthy twin passed over"
    done = {l['ailment'] for l in read(record)}
    for name, (cause, _) in ailments.items():
        if name in done: continue
        start = time.process_time()
        sick, healthy = ([causes_of(make_case(name, is_sick, seed)) for seed in range(seeds)] for is_sick in (True, False))
        line = dict(ailment=name, cause=cause, seeds=seeds, named=sum(cause in said[:2] for said in sick), named_first=sum(said[:1] == [cause] for said in sick),
                    silent=sum(not said for said in healthy), alarms=sorted({c for said in healthy for c in said}),
                    seconds=round(time.process_time() - start, 2), preset='small networks, one thread', **here())
        keep(record, line)
        print(f'{name:28} named in {line["named"]} of {seeds}, twin passed over in {line["silent"]}', flush=True)


def main(record=None, only=''):
    lines, failed = read(record), []
    done = {(line['library'], line['name']) for line in lines}
    for library, name, make in (*of_hand(), *(of_transformers() or ()), *(of_timm() or ())):
        if only not in f'{library} {name}' or (library, name) in done: continue
        torch.manual_seed(0)
        try: report, seconds = audited(make)
        except Exception as e:
            failed.append(name)
            print(f'{library:12} {name:34} not audited: {type(e).__name__}: {str(e)[:120]}', flush=True)
            continue
        lines.append(dict(library=library, name=name, branches=report.depth, causes=[f.cause for f in report.findings], findings=list(report.findings),
                          notes=report.notes, sensitivity=report.noise if report.noise == report.noise else None, seconds=round(seconds, 2),
                          preset='random weights, one thread', **here()))
        keep(record, lines[-1])
        print(f'{library:12} {name:34} {seconds:5.2f} s  {"; ".join(f"{f.cause}: {f.seen} ({f.where})" for f in report.findings) or "-"}', flush=True)
    said = sum(bool(l['causes']) for l in lines)
    print(f'{len(lines)} default starts audited, {said} with a finding, {len(failed)} not audited')


if __name__ == '__main__':
    words = {'judge': judge, 'ailments': try_ailments}
    if sys.argv[1:2] and sys.argv[1] in words: words[sys.argv[1]](*sys.argv[2:])
    else: main(*sys.argv[1:])
