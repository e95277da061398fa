"""Rows in the original form of the QA data sets that are not at hand, and adapters of known
size.
"""

import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

FINQA = {
    "id": "A/2015/page_1.pdf-1",
    "pre_text": ["before ."],
    "post_text": ["after ."],
    "table": [["", "2015"], ["sales", "$ 94"]],
}
TURNS = {
    "dialogue_break": ["what were sales in 2015?", "and in 2014?"],
    "exe_ans_list": [94.0, 90.0],
}
ORIGINALS = {
    "finqa": (
        "test.json",
        json.dumps([FINQA | {"qa": {"question": "sales?", "answer": "", "exe_ans": 94.0}}]),
    ),
    "convfinqa": ("dev.json", json.dumps([FINQA | {"annotation": TURNS}])),
    "financebench": (
        "financebench_open_source.jsonl",
        "\n".join(
            json.dumps(
                {
                    "financebench_id": str(i),
                    "doc_name": "3M_2018",
                    "question": "capex?",
                    "answer": answer,
                }
                | evidence
            )
            for i, (answer, evidence) in enumerate(
                [
                    ("$1577.00", {"evidence": [{"evidence_text": "capex\n 1,577"}]}),
                    ("No.", {"evidence": []}),
                    ("It fell.", {}),
                ]
            )
        ),
    ),
    "phrasebank": (
        "Sentences_AllAgree.txt",
        "Sales at \u20ac 5 @ home rose .@positive\r\nNothing new in Tampere , H\u00e4me "
        ".@neutral\r\n",
    ),
    "gold_headlines": (
        "finalDataset_0208.csv",
        "Dates,URL,News,Price Direction Up,Price Direction Constant,Price Direction Down,"
        "Asset Comparision,Past Information,"
        "Future Information,Price Sentiment\n"
        '28-01-2016,http://x,"april gold down 20 cents, settles",0,0,1,0,1,0,negative\n',
    ),
    "fomc": (
        "fomc_test.csv",
        (
            "index,sentence,year,label,orig_index\n0,Rates may rise.,2015,1,3\n1,Rates may "
            "fall.,2015,0,4\n"
        ),
    ),
}


def write_original(name, folder):
    file, text = ORIGINALS[name]
    (folder / file).write_bytes(
        text.encode("latin-1" if name == "phrasebank" and "\u20ac" not in text else "utf-8")
    )
    return folder / file


def lora(base, out, scale, seed=0):
    """Save a LoRA adapter on two layers of `base`; a scale of 0 makes it change nothing."""
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[2, 3],
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and scale:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(out)
    return out
