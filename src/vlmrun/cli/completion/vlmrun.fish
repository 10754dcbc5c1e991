# Completion of vlmrun in fish.   vlmrun completion fish > ~/.config/fish/completions/vlmrun.fish
function __vlmrun_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] completion words -- $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path $current
    end
end
complete -c vlmrun -f -a '(__vlmrun_words)'
