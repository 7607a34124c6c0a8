#!/usr/bin/env python3
"""Measures Quern and llama.cpp (or a program with its llama-bench) side by side on this machine.

    deploy/compare_peers.py llama.cpp=DIRECTORY [ik_llama.cpp=DIRECTORY ...] [options]

A directory holds a peer's own llama-bench and llama-quantize. Both sides get random weights in the
shape of a well-known model, as many threads, and take turns: each figure is a median over rounds, so
that the machine's moods meet all alike. Quern's programs are those of build/bin. A peer's whole model
is of one type (llama-quantize --pure), Quern's embedding and head have --embedding-bits. Needs numpy and
gguf (PyPI), and room for the models in --directory: 7 bytes a weight.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import gguf
import numpy

# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied: core/bench/synthetic_model.cc
SHAPES = {
    'smollm2-135m': (576, 1536, 30, 9, 3, 49152, True),
    'tinyllama-1.1b': (2048, 5632, 22, 32, 4, 32000, False),
    'llama-2-7b': (4096, 11008, 32, 32, 32, 32000, False),
}
# Quern's formats, and the types of about that width that are fastest on CPUs; those that only
# ik_llama.cpp has come last.
PAIRS = [
    (('--bits', '2', '--group-size', '64'), 'w2g64', ['Q2_K'], ['IQ2_KS']),
    (('--bits', '3', '--group-size', '128'), 'w3g128', ['Q3_K_M'], ['IQ3_K']),
    (('--bits', '4', '--group-size', '128'), 'w4g128', ['Q4_0', 'Q4_K_M'], ['IQ4_KS']),
]


def write_random_model(path, shape):
    """The shape as F16 with a vocabulary of made-up words."""
    hidden, intermediate, layers, heads, kv_heads, vocab, tied = SHAPES[shape]
    head_dim = hidden // heads
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = ['<unk>', '<s>', '</s>'] + [f'<0x{i:02X}>' for i in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    tokens += [f'\u2581w{i}' for i in range(vocab - len(tokens))]
    kinds += [1] * (vocab - len(kinds))
    writer.add_tokenizer_model('llama')
    writer.add_tokenizer_pre('default')
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(vocab)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    random = numpy.random.default_rng(1)

    def matrix(name, rows, cols):
        values = random.standard_normal((rows, cols), numpy.float32) * 0.02
        writer.add_tensor(name, values.astype(numpy.float16))

    def norm(name):
        writer.add_tensor(name, numpy.ones(hidden, numpy.float32))

    matrix('token_embd.weight', vocab, hidden)
    for layer in range(layers):
        block = f'blk.{layer}.'
        norm(block + 'attn_norm.weight')
        matrix(block + 'attn_q.weight', hidden, hidden)
        matrix(block + 'attn_k.weight', kv_heads * head_dim, hidden)
        matrix(block + 'attn_v.weight', kv_heads * head_dim, hidden)
        matrix(block + 'attn_output.weight', hidden, hidden)
        norm(block + 'ffn_norm.weight')
        matrix(block + 'ffn_gate.weight', intermediate, hidden)
        matrix(block + 'ffn_up.weight', intermediate, hidden)
        matrix(block + 'ffn_down.weight', hidden, intermediate)
    norm('output_norm.weight')
    if not tied:
        matrix('output.weight', vocab, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f'{" ".join(map(str, command))}: exit {done.returncode}\n{done.stderr[-2000:]}')
    return done.stdout


class Peer:
    def __init__(self, text):
        self.name, _, directory = text.partition('=')
        # A fork with types, and a faster way to lay out the others at run time (-rtr), of its own.
        self.is_ik = self.name.startswith('ik')
        self.directory = pathlib.Path(directory)
        for program in ('llama-bench', 'llama-quantize'):
            if not (self.directory / program).is_file():
                sys.exit(f'{text}: no {program} in {directory}')

    def model(self, directory, shape, kind):
        """The shape in one type, made by the peer's own quantizer."""
        path = directory / f'{shape}-{self.name}-{kind}.gguf'
        if not path.exists():
            source = directory / f'{shape}-F16.gguf'
            if not source.exists():
                print(f'writing {source}', file=sys.stderr)
                write_random_model(source, shape)
            run(self.directory / 'llama-quantize', '--pure', source, path, kind)
        return path

    def measure(self, model, options):
        """(prefill, decode) in tokens/s, the better of what the program's switches give."""
        best = [0.0, 0.0]
        for extra in ([], ['-rtr', '1']) if self.is_ik else ([],):
            rows = json.loads(run(self.directory / 'llama-bench', '-m', model, '-t', options.threads,
                                  '-p', options.prompt_tokens, '-n', options.output_tokens, '-r', 1,
                                  '-o', 'json', *extra))
            for row in rows:
                index = 0 if row['n_prompt'] else 1
                best[index] = max(best[index], row['avg_ts'])
        return best


def measure_quern(quern, shape, format_options, options):
    document = json.loads(run(
        quern, '--json', 'bench', 'model', '--shape', shape, *format_options, '--threads',
        options.threads, '--embedding-bits', options.embedding_bits, '--prompt-tokens',
        # Like llama-bench, which decodes from an empty context.
        f'{options.prompt_tokens},1', '--output-tokens', options.output_tokens, '--repeat', 1))
    prefill, decode = document['rows']
    return [prefill['prefillTokensPerSecond'], decode['decodeTokensPerSecond']], document


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('peers', nargs='+', metavar='NAME=DIRECTORY', type=Peer)
    parser.add_argument('--shape', choices=SHAPES, action='append')
    parser.add_argument('--bits', type=int, choices=(2, 3, 4), action='append')
    parser.add_argument('--group-size', type=int, help='of all of Quern\'s formats')
    parser.add_argument('--embedding-bits', type=int, choices=(4, 8, 16), default=4)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--prompt-tokens', type=int, default=512)
    parser.add_argument('--output-tokens', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--directory', type=pathlib.Path, default=pathlib.Path('build/peers'))
    parser.add_argument('--quern', default='build/bin/quern')
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)

    for shape in options.shape or list(SHAPES)[:2]:
        for format_options, name, kinds, ik_kinds in PAIRS:
            if options.bits and int(format_options[1]) not in options.bits:
                continue
            if options.group_size:
                format_options = (*format_options[:3], str(options.group_size))
                name = f'w{format_options[1]}g{options.group_size}'
            if SHAPES[shape][0] % 256 != 0:
                kinds, ik_kinds = ['Q4_0'], []  # the others have blocks of 256
            peers = [(p, kind, p.model(options.directory, shape, kind))
                     for p in options.peers for kind in kinds + (ik_kinds if p.is_ik else [])]
            ours, theirs = [], [[] for _ in peers]
            for _ in range(options.rounds):
                speed, document = measure_quern(options.quern, shape, format_options, options)
                ours.append(speed)
                for times, (peer, _, model) in zip(theirs, peers):
                    times.append(peer.measure(model, options))

            def median(times):
                return [statistics.median(t[i] for t in times) for i in (0, 1)]

            prefill, decode = median(ours)
            print(f'\n{shape}, {options.threads} threads, prompt {options.prompt_tokens}, '
                  f'median of {options.rounds}')
            print(f'  {"":24} {"MB":>8} {"prefill":>10} {"decode":>10}   Quern is')
            print(f'  {"Quern " + name:24} {document["weightBytes"] / 1e6:8.1f} {prefill:10.1f} '
                  f'{decode:10.1f}   ({document["kernels"]})')
            for times, (peer, kind, model) in zip(theirs, peers):
                their_prefill, their_decode = median(times)
                print(f'  {peer.name + " " + kind:24} {model.stat().st_size / 1e6:8.1f} '
                      f'{their_prefill:10.1f} {their_decode:10.1f}   '
                      f'{prefill / their_prefill:.2f}x, {decode / their_decode:.2f}x as fast')


if __name__ == '__main__':
    main()
