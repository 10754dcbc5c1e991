"""The formats models come in (`base.Format`): each reads into internal names, or writes from them, no other known."""
