"""Values of a TOML file, made into what the functions of `rayvisor.children` take."""
