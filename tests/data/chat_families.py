"""Chat templates of the families that memories are trained on, reduced to what one question and
answer need.

Each does what its family's own template does to the two texts and around them: what is trimmed,
which blanks and new lines stand where, whether a further turn is opened always, the clock, and
thinking.
"""

from __future__ import annotations

_LOOP = "{% for m in messages %}"
_GENERATE = "{% endfor %}{% if add_generation_prompt %}"
_CHATML = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_LLAMA3 = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
_LLAMA3_OPENS = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
_QWEN3 = (
    "{% if m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content + '<|im_end|>\n' }}"
    "{% else %}" + _CHATML + "{% endif %}"
)

TEMPLATES = {
    "chatml": _LOOP + _CHATML + _GENERATE + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "qwen2.5": "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}"
    + (_LOOP + _CHATML + _GENERATE + "{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "qwen3": _LOOP
    + _QWEN3
    + _GENERATE
    + "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    "llama2": _LOOP + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": _LOOP
    + "{% if loop.first %}{{ bos_token }}{% endif %}"
    + _LLAMA3
    + "{% endfor %}"
    + _LLAMA3_OPENS,
    "llama3.1": "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}"
    "{{ date_string if date_string is defined else '26 Jul 2024' }}{{ '\n\n<|eot_id|>' }}"
    + _LOOP
    + _LLAMA3
    + _GENERATE
    + _LLAMA3_OPENS
    + "{% endif %}",
    "llama3.2": "{{ bos_token }}{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date = '26 Jul 2024' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '\n\n<|eot_id|>' }}"
    + _LOOP
    + _LLAMA3
    + _GENERATE
    + _LLAMA3_OPENS
    + "{% endif %}",
    "mistral 0.1": "{{ bos_token }}"
    + _LOOP
    + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "mistral 0.3": "{{ bos_token }}"
    + _LOOP
    + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
    "mistral small 3": "{{ bos_token + '[SYSTEM_PROMPT]The current date is ' + strftime_now('%Y-%m-%d') }}"
    "{{ '.[/SYSTEM_PROMPT]' }}" + _LOOP + "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}"
    + _LOOP
    + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}" + _GENERATE + "{{ '<start_of_turn>model\n' }}{% endif %}",
    "zephyr": _LOOP
    + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    + _GENERATE
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "vicuna": _LOOP + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}"
    + _GENERATE
    + "{{ 'ASSISTANT:' }}{% endif %}",
    "phi 3": _LOOP
    + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
    + _GENERATE
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "deepseek v3": "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}"
    + _GENERATE
    + "{{ '<｜Assistant｜>' }}{% endif %}",
    "deepseek r1": "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    + _GENERATE
    + "{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    "glm 4": "{{ '[gMASK]<sop>' }}"
    + _LOOP
    + "{{ '<|' + m.role + '|>\n' + m.content }}"
    + _GENERATE
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "command r": "{{ bos_token }}"
    + _LOOP
    + "{{ '<|START_OF_TURN_TOKEN|><|' + ('CHATBOT' if m.role == 'assistant' else 'USER') + '_TOKEN|>' }}"
    "{{ m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    + _GENERATE
    + "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
    "gpt-oss": "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    + _LOOP
    + "{% if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% endif %}"
    + _GENERATE
    + "{{ '<|start|>assistant' }}{% endif %}",
}
