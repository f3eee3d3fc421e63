"""Writes the trained model as a GGUF file in Q8_0 and says what the quantized weights cost.

Reads FOLDER/tokenizer.json, FOLDER/model.pt and the corpus; prints the held-out loss of the weights as
they were trained and as the file holds them.
"""

import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch

from model import Config, Llama
from train import BOS, END, SPECIAL, Data, held_out_loss

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def metadata(writer, config, vocabulary, merges):
    writer.add_name("Realm demo")
    writer.add_author("The Realm developers")
    writer.add_license("MIT OR Apache-2.0")
    writer.add_description("A very small model of Shakespeare, Austen and Doyle; see tools/demo-model")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    writer.add_token_types([kinds[token not in SPECIAL] for token in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary.index(BOS))
    writer.add_eos_token_id(vocabulary.index(END))
    writer.add_add_bos_token(True)
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    writer.add_chat_template(template.strip())


def export(args):
    config = Config()
    model = Llama(config)
    model.load_state_dict(torch.load(args.folder / "model.pt", map_location="cpu"))
    data = Data(args.corpus, config.vocabulary, config.context, seed=1)
    saved = json.loads((args.folder / "tokenizer.json").read_text())["model"]
    assert saved["vocab"] == data.tokenizer.get_vocab(), "another corpus than the model's"
    vocabulary = sorted(saved["vocab"], key=saved["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["merges"]]

    device = torch.device("cpu")
    trained = held_out_loss(model, data, device, torch.float32)
    writer = gguf.GGUFWriter(args.out, "llama")
    metadata(writer, config, vocabulary, merges)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = weight.float().numpy()
            if values.ndim == 1:
                writer.add_tensor(name, values)
                continue
            blocks = gguf.quants.quantize(values, Q8_0)
            writer.add_tensor(name, blocks, raw_dtype=Q8_0)
            weight.copy_(torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(blocks, Q8_0))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = held_out_loss(model, data, device, torch.float32)
    bits = data.held_out_tokens / data.held_out_bytes / math.log(2)
    for what, loss in [("as trained", trained), ("as stored (Q8_0)", stored)]:
        print(f"held-out loss {what}: {loss:.4f} nats a token, {loss * bits:.4f} bits a byte")
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder of the texts")
    parser.add_argument("folder", type=Path, help="what train.py wrote")
    parser.add_argument("out", type=Path, help="the GGUF file")
    export(parser.parse_args())
