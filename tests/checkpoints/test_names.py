from rwkv_engine.core.rwkv4 import Rwkv4Config


def test_the_renaming_of_the_conversion_script():
    assert Rwkv4Config.to_hugging_face("emb.weight") == "rwkv.embeddings.weight"
    assert Rwkv4Config.to_hugging_face("blocks.0.ln0.bias") == "rwkv.blocks.0.pre_ln.bias"
    assert Rwkv4Config.to_hugging_face("blocks.3.att.time_mix_k") == "rwkv.blocks.3.attention.time_mix_key"
    assert Rwkv4Config.to_hugging_face("blocks.3.ffn.time_mix_r") == "rwkv.blocks.3.feed_forward.time_mix_receptance"
    assert Rwkv4Config.to_hugging_face("ln_out.weight") == "rwkv.ln_out.weight"
    assert Rwkv4Config.to_hugging_face("head.weight") == "head.weight"


def test_there_and_back_with_and_without_prefix():
    for name in Rwkv4Config(11, 8, 8, 32, 9).tensor_shapes():
        renamed = Rwkv4Config.to_hugging_face(name)
        assert (
            Rwkv4Config.to_original(renamed)
            == Rwkv4Config.to_original(renamed.removeprefix("rwkv."))
            == Rwkv4Config.to_original(name)
            == name
        )
