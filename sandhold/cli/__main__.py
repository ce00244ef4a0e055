from sandhold.cli import main

main()
