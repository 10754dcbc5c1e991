# Completion of vlmrun in bash.   eval "$(vlmrun completion bash)"
_vlmrun() {
    local line="${COMP_LINE:0:COMP_POINT}" current rest prefix="" word breaks
    local -a words
    # Words without readline's breaks at = and : and @, which are parts of an override.
    read -r -a words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    while [[ ${#words[@]} -gt 1 && ${words[0]} != *vlmrun ]]; do words=("${words[@]:1}"); done
    current="${words[${#words[@]} - 1]}"
    breaks="${COMP_WORDBREAKS//[^=:@]/}"
    case $current in
        [\'\"]*) current="${current:1}" ;; # inside quotes nothing breaks
        *)
            if [[ -n $breaks ]]; then
                rest="${current##*["$breaks"]}"
                prefix="${current%"$rest"}"
            fi
            ;;
    esac
    words[${#words[@]} - 1]="$current"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$prefix"}")
        case $word in *[=.[,]) compopt -o nospace 2>/dev/null ;; esac
    done < <("${words[0]}" completion words -- "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _vlmrun vlmrun
