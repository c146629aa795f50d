"""`residual_branches` on the networks of torchvision, timm and transformers: the count that each definition gives beside the one found.

    python benchmarks/bench_branches.py [RECORD.jsonl]

Libraries that are missing are left out. Weights are random; nothing is downloaded. With a file name, one line per network is written there."""
import json, platform, statistics, sys, time, warnings
from datetime import datetime, timezone

import torch
from timing import load

from resnotes import __version__
from resnotes.branches import residual_branches

warnings.filterwarnings('ignore')
torch.set_num_threads(1)

# Additions by the definition of each network. An inverted residual has one where it keeps shape and size; PoolFormer's pooling branches have no weights;
# CaiT's first class attention adds to the class token, which is no data; HRNet has blocks in 1, 2, 3 and 4 streams and one for each stream in its head.
IMAGES = {   # library: {name: additions}
    'torchvision': {
        'resnet18': '2+2+2+2', 'resnet50': '3+4+6+3', 'resnext50_32x4d': '3+4+6+3', 'wide_resnet50_2': '3+4+6+3',
        'convnext_tiny': '3+3+9+3', 'vit_b_16': '2*12', 'swin_t': '2*(2+2+6+2)', 'swin_v2_t': '2*(2+2+6+2)', 'maxvit_t': '(1+4)*(2+2+5+2)',
        'regnet_y_400mf': '1+3+6+6', 'regnet_x_400mf': '1+2+7+12', 'efficientnet_b0': '0+1+1+2+2+3+0', 'efficientnet_v2_s': '2+3+3+5+8+14',
        'mobilenet_v2': '0+1+2+3+2+2+0', 'mobilenet_v3_large': '1+1+2+3+1+2', 'mobilenet_v3_small': '0+1+2+1+2', 'mnasnet1_0': '2+2+2+1+3+0',
        'densenet121': '0', 'vgg16_bn': '0', 'alexnet': '0', 'googlenet': '0', 'squeezenet1_1': '0', 'shufflenet_v2_x1_0': '0',
        'fcn_resnet50': '3+4+6+3', 'deeplabv3_resnet50': '3+4+6+3', 'r3d_18': '2+2+2+2'},
    'timm': {
        'resnet50d': '3+4+6+3', 'seresnet50': '3+4+6+3', 'res2net50_26w_4s': '3+4+6+3', 'resnest14d': '1+1+1+1', 'nf_resnet50': '3+4+6+3',
        'resnetv2_50': '3+4+6+3', 'convnextv2_atto': '2+2+6+2', 'vit_tiny_patch16_224': '2*12', 'deit3_small_patch16_224': '2*12',
        'cait_xxs24_224': '2*24+2*2-1', 'mixer_s16_224': '2*8', 'resmlp_12_224': '2*12', 'poolformer_s12': '2+2+6+2',
        'swin_tiny_patch4_window7_224': '2*(2+2+6+2)', 'regnety_002': '1+1+4+7', 'tf_efficientnet_b0': '0+1+1+2+2+3+0',
        'mobilenetv3_small_100': '0+1+2+1+2', 'densenet121': '0', 'vgg11': '0', 'cspresnet50': '3+3+5+2', 'hrnet_w18_small': '1+2*2+3*2+4*2+4'},
}
SMALL = {'vit_b_16', 'swin_t', 'swin_v2_t', 'maxvit_t'}   # networks of one size of image


def image_net(library, name):
    "A network and a batch of one image for it"
    side = 224 if '224' in name or name in SMALL else 96
    if library == 'timm': return __import__('timm').create_model(name), torch.randn(1, 3, side, side)
    import torchvision
    kwargs = dict(weights_backbone=None) if name in ('fcn_resnet50', 'deeplabv3_resnet50') else {}
    x = torch.randn(1, 3, 8, 64, 64) if name == 'r3d_18' else torch.randn(1, 3, side, side)
    return torchvision.models.get_model(name, weights=None, **kwargs), x


TINY = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
TEXT = {   # name: (additions by the definition, settings)
    'BertModel': ('2*3', TINY), 'RobertaModel': ('2*3', TINY), 'ElectraModel': ('2*3', dict(TINY, embedding_size=32)), 'AlbertModel': ('2*3', dict(TINY, embedding_size=16)),
    'DistilBertModel': ('2*3', dict(vocab_size=99, dim=32, hidden_dim=64, n_layers=3, n_heads=4)),
    'DebertaV2Model': ('2*3', dict(TINY, relative_attention=True, pos_att_type=['p2c', 'c2p'])),
    'GPT2LMHeadModel': ('2*3', dict(vocab_size=99, n_embd=32, n_layer=3, n_head=4)),
    'OPTForCausalLM': ('2*3', dict(vocab_size=99, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32)),
    'BloomForCausalLM': ('2*3', dict(vocab_size=99, hidden_size=32, n_layer=3, n_head=4)),
    'GPTNeoXForCausalLM': ('2*3', TINY), 'GPTJForCausalLM': ('2*3', dict(vocab_size=99, n_embd=32, n_layer=3, n_head=4, rotary_dim=4)),
    'LlamaForCausalLM': ('2*3', TINY), 'MistralForCausalLM': ('2*3', dict(TINY, num_key_value_heads=2)), 'GemmaForCausalLM': ('2*3', dict(TINY, num_key_value_heads=2, head_dim=8)),
    'MixtralForCausalLM': ('2*3', dict(TINY, num_key_value_heads=2, num_local_experts=4)),
    'T5ForConditionalGeneration': ('2*3+3*3', dict(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)),
    'BartModel': ('2*3+3*3', dict(vocab_size=99, d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64)),
    'MambaForCausalLM': ('3', dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, state_size=4)),
}


def text_net(name):
    "A small network of this class and a batch of tokens for it"
    import transformers
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**TEXT[name][1]))
    tokens = dict(input_ids=torch.randint(3, 99, (2, 7)))
    if model.config.is_encoder_decoder: tokens['decoder_input_ids'] = torch.randint(3, 99, (2, 5))
    return model, tokens


def seconds(run, runs):
    "Median of processor seconds"
    def one():
        start = time.process_time()
        run()
        return time.process_time() - start
    return statistics.median(one() for _ in range(runs))


def step(model, args, kwargs):
    "One forward and backward pass"
    out = model(*args, **kwargs)
    tensors = [out] if isinstance(out, torch.Tensor) else [t for t in (out.values() if hasattr(out, 'values') else out) if isinstance(t, torch.Tensor)]
    sum(t.float().sum() for t in tensors if t.requires_grad).backward()
    model.zero_grad()


def row(library, name, definition, model, args, kwargs, runs=3):
    "Compare the count, and time the search against one forward and backward pass"
    found = residual_branches(model, *args, **kwargs)
    search = seconds(lambda: residual_branches(model, *args, **kwargs), runs)
    model.eval()   # a batch of one
    step(model, args, kwargs)
    ratio = search/seconds(lambda: step(model, args, kwargs), runs)
    return dict(library=library, name=name, definition=definition, true=eval(definition), found=len(found), depth=found.depth,
                shortcuts={k: sum(b.shortcut == k for b in found) for k in ('identity', 'projection', 'pooled')},
                nested=sum(b.inside is not None for b in found), seconds=round(search, 3), ratio=round(ratio, 2))


def rows():
    "One row per network of the libraries that can be imported"
    torch.manual_seed(0)
    for library in (*IMAGES, 'transformers'):
        try: version = load(library).__version__
        except Exception as e:
            print(f'{library} left out: {e}')
            continue
        for name in IMAGES.get(library, TEXT):
            if library == 'transformers':
                (model, kwargs), args, definition = text_net(name), (), TEXT[name][0]
            else: (model, x), kwargs, definition = image_net(library, name), {}, IMAGES[library][name]
            args = () if kwargs else (x,)
            yield dict(row(library, name, definition, model, args, kwargs), library_version=version)


if __name__ == '__main__':
    here = dict(preset='random weights, one thread', device='cpu', python=platform.python_version(), torch=torch.__version__, resnotes=__version__)
    lines = []
    for r in rows():
        print(f"{r['library']:12} {r['name']:30} {r['definition']:>20} = {r['true']:<3} found {r['found']:<3} depth {r['depth']:<3} "
              f"{r['seconds']:.3f} s = x{r['ratio']:.2f} of forward and backward{'' if r['true'] == r['found'] else '   <-- differs'}", flush=True)
        lines.append(dict(r, **here, finished=datetime.now(timezone.utc).isoformat(timespec='seconds')))
    if len(sys.argv) > 1:
        with open(sys.argv[1], 'w') as f: f.writelines(json.dumps(l) + '\n' for l in lines)
    wrong = [l['name'] for l in lines if l['true'] != l['found']]
    assert not wrong, f'counts differ: {wrong}'
