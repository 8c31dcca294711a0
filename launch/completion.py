"""Shell completion as a static script: commands, their options, ready-made configs and config keys.

The script is made once and knows everything, so completing a word starts no Python and takes no time.
"""

from collections.abc import Mapping, Sequence

_BASH = """# Completion of vjepa for bash; made by `vjepa completion bash`, make it again after an update.
_vjepa() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" choices=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$choices" -- "$word") $(compgen -f -- "$word"))
    case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o filenames -F _vjepa vjepa
"""
_ZSH = """#compdef vjepa
# Completion of vjepa for zsh; made by `vjepa completion zsh`, make it again after an update.
autoload -U +X bashcompinit && bashcompinit
"""
SHELLS = ("bash", "zsh")


def write_script(shell: str, choices: Mapping[str, Sequence[str]]) -> str:
    """The script for `shell`. choices: for every command the words that may follow it."""
    cases = "\n".join(f'        {name}) choices="{" ".join(words)}" ;;' for name, words in choices.items())
    script = _BASH.format(commands=" ".join(choices), cases=cases)
    return _ZSH + script if shell == "zsh" else script
