from recipes.membership_inference import main

main()
