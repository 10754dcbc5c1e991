#compdef vlmrun
# Completion of vlmrun in zsh.   eval "$(vlmrun completion zsh)", after compinit
_vlmrun() {
    local word
    local -a typed whole begun
    typed=("${(@Q)words[2,CURRENT - 1]}" "${(Q)PREFIX}") # an empty last word is one; PREFIX has no open quote
    for word in ${(f)"$(${(Q)words[1]} completion words -- "${typed[@]}" 2>/dev/null)"}; do
        case $word in
            *(=|.|\[|,)) begun+=("$word") ;;
            *) whole+=("$word") ;;
        esac
    done
    if (( $#whole + $#begun == 0 )); then
        _files
        return
    fi
    (( $#whole )) && compadd -- $whole
    (( $#begun )) && compadd -S '' -- $begun
    return 0
}
compdef _vlmrun vlmrun
